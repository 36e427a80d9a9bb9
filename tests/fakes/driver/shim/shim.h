// CUDA's built-ins for C++: a block's threads are fibres of one operating-system thread, which the
// simulated driver switches at barriers and shuffles.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#define KERNEL static void
#define __device__
#define __shared__ static
#define __restrict__

struct uint3 {
    unsigned int x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float __uint_as_float(unsigned int bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}
static inline unsigned int __float_as_uint(float x) {
    unsigned int bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}
static inline float2 make_float2(float x, float y) { return {x, y}; }

// Where the running thread is; the driver's side has the same struct.
struct FakeThread {
    uint3 thread, block, threads, blocks;
};
extern FakeThread* fake_thread;
#define threadIdx (fake_thread->thread)
#define blockIdx (fake_thread->block)
#define blockDim (fake_thread->threads)
#define gridDim (fake_thread->blocks)

extern "C" void fake_barrier();
// Gives `value` to the warp and takes that of the lane `lane ^ mask`.
extern "C" unsigned int fake_exchange(unsigned int value, unsigned int mask);

static inline void __syncthreads() { fake_barrier(); }

template <class T>
static inline T __shfl_xor_sync(unsigned int, T value, int mask) {
    static_assert(sizeof(T) % 4 == 0, "shuffles move groups of four bytes");
    unsigned int bits[sizeof(T) / 4];
    std::memcpy(bits, &value, sizeof(T));
    for (unsigned int& part : bits) {
        part = fake_exchange(part, (unsigned int)mask);
    }
    std::memcpy(&value, bits, sizeof(T));
    return value;
}

static inline unsigned int atomicCAS(unsigned int* at, unsigned int expected, unsigned int value) {
    unsigned int old = *at;
    if (old == expected) {
        *at = value;
    }
    return old;
}

// A kernel by name: how to call it, and the sizes of its parameters in bytes.
struct FakeKernel {
    const char* name;
    void (*call)(void** parameters);
    std::size_t count;
    std::size_t sizes[16];
};

template <class... A, std::size_t... I>
static inline void fake_call(void (*kernel)(A...), void** p, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(p[I])...);
}

template <class... A>
static inline void fake_spread(void (*kernel)(A...), void** parameters) {
    fake_call(kernel, parameters, std::index_sequence_for<A...>());
}

template <class F, F kernel>
static void launch(void** parameters) {
    fake_spread(kernel, parameters);
}

template <class... A>
static FakeKernel fake_entry(const char* name, void (*call)(void**), void (*)(A...)) {
    return {name, call, sizeof...(A), {sizeof(A)...}};
}
