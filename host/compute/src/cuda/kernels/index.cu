// Operators that take elements by indices, and add them there. An index that names nothing is told
// through the error word, and counts as 0 meanwhile.
#include "device.cuh"

struct Check {
    ErrorWord* error;
    unsigned int node;
    Index size;
};

__device__ inline Index checked(const Check& check, Label index) {
    if (index >= 0 && index < Label(check.size)) {
        return Index(index);
    }
    report_label(check.error, check.node, check.size, index);
    return 0;
}

// y [outer, count, inner] = along the axis of x [outer, size, inner] the element of each index.
template <class T>
__device__ inline void gather_elements(const T* x, const Label* by, T* y, const Check& check,
                                       Index count, Index inner, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index outer = i / (count * inner);
        y[i] = x[(outer * check.size + checked(check, by[i])) * inner + i % inner];
    }
}

// y [outer, indices, inner] = the parts of x [outer, size, inner] that indices name.
template <class T>
__device__ inline void take_parts(const T* x, const Label* by, T* y, const Check& check,
                                  Index indices, Index inner, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index row = i / inner, outer = row / indices;
        Index at = checked(check, by[row - outer * indices]);
        y[i] = x[(outer * check.size + at) * inner + i % inner];
    }
}

KERNEL gather_1(const unsigned char* x, const Label* by, unsigned char* y, Check check,
                Index count, Index inner, Index n) {
    gather_elements(x, by, y, check, count, inner, n);
}

KERNEL gather_4(const float* x, const Label* by, float* y, Check check, Index count, Index inner,
                Index n) {
    gather_elements(x, by, y, check, count, inner, n);
}

KERNEL gather_8(const Label* x, const Label* by, Label* y, Check check, Index count, Index inner,
                Index n) {
    gather_elements(x, by, y, check, count, inner, n);
}

KERNEL take_1(const unsigned char* x, const Label* by, unsigned char* y, Check check,
              Index indices, Index inner, Index n) {
    take_parts(x, by, y, check, indices, inner, n);
}

KERNEL take_4(const float* x, const Label* by, float* y, Check check, Index indices, Index inner,
              Index n) {
    take_parts(x, by, y, check, indices, inner, n);
}

KERNEL take_8(const Label* x, const Label* by, Label* y, Check check, Index indices, Index inner,
              Index n) {
    take_parts(x, by, y, check, indices, inner, n);
}

// y [outer, size, inner] = zeros with each update [outer, count, inner] added at its index. A
// thread has a line of its own, so that additions happen in the order of the updates.
KERNEL scatter_add(const float* updates, const Label* by, float* y, Check check, Index count,
                   Index inner, Index lines) {
    for (Index line = first_index(); line < lines; line += index_step()) {
        Index outer = line / inner, column = line % inner;
        float* to = y + outer * check.size * inner + column;
        for (Index k = 0; k < check.size; k++) {
            to[k * inner] = 0.0f;
        }
        for (Index k = 0; k < count; k++) {
            Index from = (outer * count + k) * inner + column;
            to[checked(check, by[from]) * inner] += updates[from];
        }
    }
}

KERNEL zero(float* y, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i] = 0.0f;
    }
}

// y [outer, size, inner], zeros before, with each part of dy [outer, indices, inner] added at its
// index. A block has an index: the first of its kind adds up all of that kind, in their order.
KERNEL take_gradient(const float* dy, const Label* by, float* y, Check check, Index outers,
                     Index indices, Index inner) {
    __shared__ int earlier;
    for (Index i = blockIdx.x; i < indices; i += gridDim.x) {
        Index own = checked(check, by[i]);
        __syncthreads();
        if (threadIdx.x == 0) {
            earlier = 0;
        }
        __syncthreads();
        for (Index k = threadIdx.x; k < i; k += BLOCK) {
            if (by[k] == Label(own)) {
                earlier = 1;
            }
        }
        __syncthreads();
        if (earlier) {
            continue;
        }
        for (Index at = threadIdx.x; at < outers * inner; at += BLOCK) {
            Index outer = at / inner, column = at % inner;
            float total = 0.0f;
            for (Index k = i; k < indices; k++) {
                if (by[k] == Label(own)) {
                    total += dy[(outer * indices + k) * inner + column];
                }
            }
            y[(outer * check.size + own) * inner + column] = total;
        }
    }
}
