// Random numbers: functions of a seed, the number of the optimizer step and a place.
#include "device.cuh"

typedef unsigned long long Key;

// Steele, Lea and Flood 2014.
__device__ inline Key splitmix64(Key key) {
    Key z = key + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// 24 random bits.
__device__ inline unsigned int bits(Key key, Key place) {
    return (unsigned int)(splitmix64(key + place) >> 40);
}

// Groups of `each` elements drop together, where their bits are below the threshold.
KERNEL dropout(const float* x, float* y, const Key* step, Key seed, unsigned int threshold,
               float scale, Index each, Index n) {
    Key key = splitmix64(seed ^ splitmix64(*step));
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i] = bits(key, i / each) < threshold ? 0.0f : x[i] * scale;
    }
}

// Numbers in 0 to 1, without 1.
KERNEL random_uniform(float* y, const Key* step, Key seed, Index n) {
    Key key = splitmix64(seed ^ splitmix64(*step));
    for (Index i = first_index(); i < n; i += index_step()) {
        y[i] = float(bits(key, i)) / 16777216.0f;
    }
}
