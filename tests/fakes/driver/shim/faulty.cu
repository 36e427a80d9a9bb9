// Kernels with mistakes, to show that the simulated driver finds them.
#include "device.cuh"

// Reads a neighbour's value without waiting for it.
KERNEL missing_barrier(float* y) {
    __shared__ float values[BLOCK];
    values[threadIdx.x] = float(threadIdx.x);
    y[threadIdx.x] = values[(threadIdx.x + 1) % BLOCK];
    __syncthreads();
    values[threadIdx.x] = -1.0f;
}

// Half of the threads never come to the barrier that the others wait at.
KERNEL divergent_shuffle(float* y) {
    if (threadIdx.x % WARP < WARP / 2) {
        y[threadIdx.x] = warp_join<Sum>(1.0f);
    } else {
        __syncthreads();
    }
}
