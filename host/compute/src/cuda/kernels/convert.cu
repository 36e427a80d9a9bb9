// Between float32 and bfloat16, which is the upper half of a float32.
#include "device.cuh"

__device__ inline float widened(unsigned short bits) {
    return __uint_as_float((unsigned int)bits << 16);
}

// To nearest, ties to even; NaN stays NaN.
__device__ inline unsigned short narrowed(float x) {
    unsigned int bits = __float_as_uint(x);
    if (x != x) {
        return (unsigned short)((bits >> 16) | 0x40u);
    }
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

KERNEL widen(const unsigned short* x, float* y, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i] = widened(x[i]);
    }
}

KERNEL narrow(const float* x, unsigned short* y, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i] = narrowed(x[i]);
    }
}

// The bfloat16 nearest to x, as float32.
KERNEL round_to_bfloat16(const float* x, float* y, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i] = widened(narrowed(x[i]));
    }
}
