// Short-time Fourier transform: window, transform and power in one kernel. A block transforms a
// frame at a time by the Stockham algorithm (Cochran et al. 1967) of mixed radix, as a complex
// transform of half the size (Press et al., Numerical Recipes, 12.3.2), in shared memory where it
// fits, else in the block's part of a workspace.
#include "device.cuh"

// Complex values of a frame's two buffers that fit into shared memory: of a size up to 2048.
#define SHARED_VALUES 2048
#define MAX_FACTORS 20

struct Stft {
    Index size, hop, frames, samples, batch;
    // The factors of size/2.
    Index stages;
    Index factors[MAX_FACTORS];
};

__device__ inline float2 multiply(float2 a, float2 b) {
    return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// e^(−2πi·k/size), from the table of `size` roots that follows the window.
__device__ inline float2 root(const float* table, Index size, Index k) {
    return reinterpret_cast<const float2*>(table + size)[k % size];
}

// The transform of `in`, of n = size/2 values, and where it is at the end: `in` or `out`. Index
// products stay below size² / 2 < 2^31 for sizes up to 65536; larger ones use 64 bits.
__device__ inline float2* transform(float2* in, float2* out, const Stft& s, const float* table) {
    Index n = s.size / 2, done = 1;
    for (Index stage = 0; stage < s.stages; stage++) {
        Index radix = s.factors[stage];
        Index rest = n / (done * radix);
        for (Index i = threadIdx.x; i < n; i += BLOCK) {
            // Result q of the butterfly of (block, column).
            Index column = i % done, q = i / done % radix, block = i / (done * radix);
            float2 sum = make_float2(0.0f, 0.0f);
            for (Index p = 0; p < radix; p++) {
                float2 value = in[(p * rest + block) * done + column];
                unsigned long long turn =
                    (unsigned long long)(p) * (column + q * done) * rest * 2;
                float2 turned = multiply(value, root(table, s.size, Index(turn % s.size)));
                sum.x += turned.x;
                sum.y += turned.y;
            }
            out[(block * radix + q) * done + column] = sum;
        }
        __syncthreads();
        float2* swap = in;
        in = out;
        out = swap;
        done *= radix;
    }
    return in;
}

// Bin k of the real transform, from the complex one of half the size.
__device__ inline float2 bin(const float2* half, const Stft& s, const float* table, Index k) {
    Index n = s.size / 2;
    float2 a = half[k % n], b = half[(n - k) % n];
    float2 even = make_float2(0.5f * (a.x + b.x), 0.5f * (a.y - b.y));
    float2 odd = make_float2(0.5f * (a.y + b.y), 0.5f * (b.x - a.x));
    float2 turned = multiply(odd, root(table, s.size, k));
    return make_float2(even.x + turned.x, even.y + turned.y);
}

// The two buffers of a block.
__device__ inline float2* buffers(float2* shared, float2* workspace, const Stft& s) {
    return s.size <= SHARED_VALUES ? shared : workspace + blockIdx.x * s.size;
}

// The windowed frame's transform of half the size.
__device__ inline float2* spectrum(const float* x, float2* buffer, const Stft& s,
                                   const float* table) {
    Index n = s.size / 2;
    for (Index i = threadIdx.x; i < n; i += BLOCK) {
        buffer[i] = make_float2(x[2 * i] * table[2 * i], x[2 * i + 1] * table[2 * i + 1]);
    }
    __syncthreads();
    return transform(buffer, buffer + n, s, table);
}

// y [batch, bins, frames] = factor · |X|² + offset, or where `log` the logarithm of that.
KERNEL stft_power(const float* x, const float* table, float* y, float2* workspace, Stft s,
                  float factor, float offset, int log) {
    __shared__ float2 shared[SHARED_VALUES];
    float2* buffer = buffers(shared, workspace, s);
    Index bins = s.size / 2 + 1;
    for (Index i = blockIdx.x; i < s.batch * s.frames; i += gridDim.x) {
        Index sample = i / s.frames, frame = i % s.frames;
        float2* half = spectrum(x + sample * s.samples + frame * s.hop, buffer, s, table);
        for (Index k = threadIdx.x; k < bins; k += BLOCK) {
            float2 value = bin(half, s, table, k);
            float power = factor * (value.x * value.x + value.y * value.y) + offset;
            y[(sample * bins + k) * s.frames + frame] = log ? logf(power) : power;
        }
        __syncthreads();
    }
}

// The gradient of a frame's samples: window · Re Σₖ 2·dy·X·e^{2πikn/size}. With Z the complex
// spectrum of half the size of the real signal g, g is Z's inverse transform, which is the
// conjugate of the transform of the conjugate. frames[sample, frame, n] is left for a second
// kernel to add up where frames overlap.
KERNEL stft_power_gradient(const float* x, const float* table, const float* dy, float* frames,
                           float2* workspace, Stft s) {
    __shared__ float2 shared[SHARED_VALUES];
    float2* buffer = buffers(shared, workspace, s);
    Index n = s.size / 2, bins = n + 1;
    for (Index i = blockIdx.x; i < s.batch * s.frames; i += gridDim.x) {
        Index sample = i / s.frames, frame = i % s.frames;
        const float* slope = dy + sample * bins * s.frames + frame;
        float2* half = spectrum(x + sample * s.samples + frame * s.hop, buffer, s, table);
        float2* other = half == buffer ? buffer + n : buffer;
        for (Index k = threadIdx.x; k < n; k += BLOCK) {
            // G = 2·dy·X at k and n − k, inner bins halved as the sum runs over half of them.
            float2 g = bin(half, s, table, k), h = bin(half, s, table, n - k);
            float wg = slope[k * s.frames] * (k == 0 ? 2.0f : 1.0f);
            float wh = slope[(n - k) * s.frames] * (k == 0 ? 2.0f : 1.0f);
            g = make_float2(g.x * wg, k == 0 ? 0.0f : g.y * wg);
            h = make_float2(h.x * wh, k == 0 ? 0.0f : h.y * wh);
            float2 even = make_float2(g.x + h.x, g.y - h.y);
            float2 odd = make_float2(g.x - h.x, g.y + h.y);
            float2 w = root(table, s.size, k);
            float2 turned = multiply(odd, make_float2(w.x, -w.y));
            // Z = even + i·odd, conjugated.
            other[k] = make_float2(even.x - turned.y, -(even.y + turned.x));
        }
        __syncthreads();
        float2* signal = transform(other, half, s, table);
        float* to = frames + i * s.size;
        for (Index k = threadIdx.x; k < n; k += BLOCK) {
            to[2 * k] = signal[k].x * table[2 * k];
            to[2 * k + 1] = -signal[k].y * table[2 * k + 1];
        }
        __syncthreads();
    }
}

// dx[sample, n] = Σ over the frames that hold sample n.
KERNEL overlap_add(const float* frames, float* dx, Stft s, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index sample = i / s.samples, at = i % s.samples;
        Index first = at >= s.size ? (at - s.size) / s.hop + 1 : 0;
        float sum = 0.0f;
        for (Index frame = first; frame < s.frames && frame * s.hop <= at; frame++) {
            sum += frames[(sample * s.frames + frame) * s.size + (at - frame * s.hop)];
        }
        dx[i] = sum;
    }
}
