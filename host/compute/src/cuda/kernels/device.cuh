// What every kernel stands on: index types, warp and block reductions, the error word.
//
// Kernels see the device through this file and CUDA's portable built-ins alone, so that each also
// compiles as C++ against a host runtime that supplies the built-ins.
#pragma once

// Threads of every block.
#define BLOCK 256
#define WARP 32
#define MAX_RANK 8

// A kernel that the host launches by name.
#ifndef KERNEL
#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK)
#endif

// Tensors have fewer than 2^31 elements, so that 32 bits index them.
typedef unsigned int Index;
typedef long long Label;

// Where the elements of a tensor lie: the last axis runs fastest.
struct Strided {
    Index rank;
    Index sizes[MAX_RANK];
    Index strides[MAX_RANK];
};

// Two tensors read along the same axes; a stride of 0 repeats an element.
struct Pair {
    Index rank;
    Index sizes[MAX_RANK];
    Index a[MAX_RANK];
    Index b[MAX_RANK];
};

// The first data-dependent error of a step: a kernel never faults on data, it tells.
struct ErrorWord {
    // 0: none; otherwise the number of the node + 1.
    unsigned int node;
    unsigned int classes;
    Label label;
};

__device__ inline void report_label(ErrorWord* error, unsigned int node, unsigned int classes,
                                    Label label) {
    if (atomicCAS(&error->node, 0u, node + 1) == 0u) {
        error->classes = classes;
        error->label = label;
    }
}

// Loops over axes are not unrolled: nvcc 13.0.88 then mixes up fields of such structs (a slice of four
// axes read the outermost stride from another place).

// The element of a tensor that has number `i` in row-major order.
__device__ inline Index offset_of(const Strided& layout, Index i) {
    Index offset = 0;
#pragma unroll 1
    for (int axis = int(layout.rank) - 1; axis >= 0; axis--) {
        Index rest = i / layout.sizes[axis];
        offset += (i - rest * layout.sizes[axis]) * layout.strides[axis];
        i = rest;
    }
    return offset;
}

__device__ inline void offsets_of(const Pair& layout, Index i, Index& a, Index& b) {
    a = 0;
    b = 0;
#pragma unroll 1
    for (int axis = int(layout.rank) - 1; axis >= 0; axis--) {
        Index rest = i / layout.sizes[axis];
        Index at = i - rest * layout.sizes[axis];
        a += at * layout.a[axis];
        b += at * layout.b[axis];
        i = rest;
    }
}

// The first element of a thread in a loop over all threads of the grid, and the step of the loop.
__device__ inline Index first_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline Index index_step() { return gridDim.x * blockDim.x; }

struct Sum {
    typedef float Value;
    static __device__ float start() { return 0.0f; }
    static __device__ float join(float a, float b) { return a + b; }
};

// In float64, so that what cancels costs no accuracy. Kernels that read each element once are
// bound by memory even where float64 is 64 times slower.
struct ExactSum {
    typedef double Value;
    static __device__ double start() { return 0.0; }
    static __device__ double join(double a, double b) { return a + b; }
};

// NaN wins, as in PyTorch.
struct Max {
    typedef float Value;
    static __device__ float start() { return -INFINITY; }
    static __device__ float join(float a, float b) { return a > b || a != a ? a : b; }
};

struct Min {
    typedef float Value;
    static __device__ float start() { return INFINITY; }
    static __device__ float join(float a, float b) { return a < b || a != a ? a : b; }
};

// Joins the values of a warp's threads in a fixed order; every thread gets the result.
template <class Join>
__device__ inline typename Join::Value warp_join(typename Join::Value value) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        value = Join::join(value, __shfl_xor_sync(0xffffffffu, value, lane));
    }
    return value;
}

// The same for a block; `shared` has room for a value a warp.
template <class Join>
__device__ inline typename Join::Value block_join(typename Join::Value value,
                                                  typename Join::Value* shared) {
    Index warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    value = warp_join<Join>(value);
    __syncthreads();
    if (lane == 0) {
        shared[warp] = value;
    }
    __syncthreads();
    return warp_join<Join>(lane < blockDim.x / WARP ? shared[lane] : Join::start());
}
