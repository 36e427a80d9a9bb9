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
