// Operators that move elements.
#include "device.cuh"

#define TILE 32

template <class T>
__device__ inline void gather_strided(const T* x, T* y, const Strided& layout, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i] = x[offset_of(layout, i)];
    }
}

// y in row-major order of x as the layout shows it: permute and expand.
KERNEL move_1(const unsigned char* x, unsigned char* y, Strided layout, Index n) {
    gather_strided(x, y, layout, n);
}

KERNEL move_4(const float* x, float* y, Strided layout, Index n) {
    gather_strided(x, y, layout, n);
}

KERNEL move_8(const Label* x, Label* y, Strided layout, Index n) {
    gather_strided(x, y, layout, n);
}

// `[count, rows, columns]` to `[count, columns, rows]`, through shared memory so that both sides
// are read and written in order. A block moves a tile; blockIdx.y counts tiles of rows, blockIdx.z
// matrices.
KERNEL transpose_4(const float* x, float* y, Index rows, Index columns, Index count) {
    __shared__ float tile[TILE][TILE + 1];
    Index row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
    Index lane = threadIdx.x % TILE, line = threadIdx.x / TILE;
    for (Index matrix = blockIdx.z; matrix < count; matrix += gridDim.z) {
        const float* from = x + matrix * rows * columns;
        float* to = y + matrix * rows * columns;
        for (Index k = line; k < TILE; k += BLOCK / TILE) {
            if (row0 + k < rows && column0 + lane < columns) {
                tile[k][lane] = from[(row0 + k) * columns + column0 + lane];
            }
        }
        __syncthreads();
        for (Index k = line; k < TILE; k += BLOCK / TILE) {
            if (column0 + k < columns && row0 + lane < rows) {
                to[(column0 + k) * rows + row0 + lane] = tile[lane][k];
            }
        }
        __syncthreads();
    }
}

// Two tensors of which one is a window of the other: along each axis, element i of the one is
// element start + step·i of the other.
struct Window {
    Index rank;
    Index sizes[MAX_RANK];
    Index strides[MAX_RANK];
    Index result[MAX_RANK];
    int starts[MAX_RANK];
    int steps[MAX_RANK];
};

// y is the window of x; what lies past the end of an axis starts over.
template <class T>
__device__ inline void slice_window(const T* x, T* y, const Window& w, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index rest = i, offset = 0;
#pragma unroll 1
        for (int axis = int(w.rank) - 1; axis >= 0; axis--) {
            Index outer = rest / w.result[axis];
            // Below twice the size: without a sign that fits, and steps back come out right.
            Index at = Index(w.starts[axis]) + Index(w.steps[axis]) * (rest - outer * w.result[axis]);
            at -= at >= w.sizes[axis] ? w.sizes[axis] : 0;
            offset += at * w.strides[axis];
            rest = outer;
        }
        y[i] = x[offset];
    }
}

// x is the window of y, which is `fill` elsewhere.
template <class T>
__device__ inline void place_window(const T* x, T* y, const Window& w, T fill, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index rest = i, offset = 0;
        bool inside = true;
#pragma unroll 1
        for (int axis = int(w.rank) - 1; axis >= 0; axis--) {
            Index outer = rest / w.result[axis];
            int at = int(rest - outer * w.result[axis]) - w.starts[axis], step = w.steps[axis];
            if (step < 0) {
                at = -at;
                step = -step;
            }
            inside = inside && at >= 0 && at % step == 0 && at / step < int(w.sizes[axis]);
            offset += inside ? Index(at / step) * w.strides[axis] : 0;
            rest = outer;
        }
        y[i] = inside ? x[offset] : fill;
    }
}

// x `[outer, part]` into y `[outer, row]` from element `start` of each row on.
template <class T>
__device__ inline void concat_part(const T* x, T* y, Index part, Index row, Index start, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i / part * row + start + i % part] = x[i];
    }
}

KERNEL slice_1(const unsigned char* x, unsigned char* y, Window window, Index n) {
    slice_window(x, y, window, n);
}

KERNEL slice_4(const float* x, float* y, Window window, Index n) {
    slice_window(x, y, window, n);
}

KERNEL slice_8(const Label* x, Label* y, Window window, Index n) {
    slice_window(x, y, window, n);
}

KERNEL place_1(const unsigned char* x, unsigned char* y, Window window, float fill, Index n) {
    place_window(x, y, window, (unsigned char)(fill != 0.0f), n);
}

KERNEL place_4(const float* x, float* y, Window window, float fill, Index n) {
    place_window(x, y, window, fill, n);
}

KERNEL place_8(const Label* x, Label* y, Window window, Label fill, Index n) {
    place_window(x, y, window, fill, n);
}

KERNEL concat_1(const unsigned char* x, unsigned char* y, Index part, Index row, Index start,
                Index n) {
    concat_part(x, y, part, row, start, n);
}

KERNEL concat_4(const float* x, float* y, Index part, Index row, Index start, Index n) {
    concat_part(x, y, part, row, start, n);
}

KERNEL concat_8(const Label* x, Label* y, Index part, Index row, Index start, Index n) {
    concat_part(x, y, part, row, start, n);
}
