// Reductions. Which thread joins which element depends on the shape alone, and partial results are
// joined in a fixed order, so that a result is the same in every run.
//
// `splits` divides the reduced elements among blocks where there are few results: split s of result
// r goes to out[s·results + r], and a second pass joins the splits.
#include "device.cuh"

enum Reduction { SUM, MAX };

__device__ inline Index share(Index count, Index splits) { return (count + splits - 1) / splits; }

template <class Join>
__device__ inline void reduce_block(const float* x, float* out, const Strided& kept,
                                    const Strided& reduced, Index results, Index count,
                                    Index splits) {
    __shared__ typename Join::Value shared[BLOCK / WARP];
    Index first = blockIdx.y * share(count, splits);
    Index last = first + share(count, splits);
    last = last < count ? last : count;
    for (Index result = blockIdx.x; result < results; result += gridDim.x) {
        const float* from = x + offset_of(kept, result);
        typename Join::Value total = Join::start();
        for (Index i = first + threadIdx.x; i < last; i += BLOCK) {
            total = Join::join(total, from[offset_of(reduced, i)]);
        }
        total = block_join<Join>(total, shared);
        if (threadIdx.x == 0) {
            out[blockIdx.y * results + result] = float(total);
        }
    }
}

// A block a result: for reduced axes that run fastest.
KERNEL reduce_inner(int kind, const float* x, float* out, Strided kept, Strided reduced,
                    Index results, Index count, Index splits) {
    if (kind == SUM) {
        reduce_block<ExactSum>(x, out, kept, reduced, results, count, splits);
    } else {
        reduce_block<Max>(x, out, kept, reduced, results, count, splits);
    }
}

template <class Join>
__device__ inline void reduce_columns(const float* x, float* out, const Strided& kept,
                                      const Strided& reduced, Index results, Index count,
                                      Index splits) {
    __shared__ typename Join::Value shared[BLOCK / WARP][WARP];
    Index column = threadIdx.x % WARP, line = threadIdx.x / WARP;
    Index first = blockIdx.y * share(count, splits);
    Index last = first + share(count, splits);
    last = last < count ? last : count;
    for (Index start = blockIdx.x * WARP; start < results; start += gridDim.x * WARP) {
        Index result = start + column;
        typename Join::Value total = Join::start();
        if (result < results) {
            const float* from = x + offset_of(kept, result);
            for (Index i = first + line; i < last; i += BLOCK / WARP) {
                total = Join::join(total, from[offset_of(reduced, i)]);
            }
        }
        shared[line][column] = total;
        __syncthreads();
        if (line == 0 && result < results) {
            for (Index k = 1; k < BLOCK / WARP; k++) {
                total = Join::join(total, shared[k][column]);
            }
            out[blockIdx.y * results + result] = float(total);
        }
        __syncthreads();
    }
}

// 32 neighbouring results a block: for results that run fastest.
KERNEL reduce_outer(int kind, const float* x, float* out, Strided kept, Strided reduced,
                    Index results, Index count, Index splits) {
    if (kind == SUM) {
        reduce_columns<ExactSum>(x, out, kept, reduced, results, count, splits);
    } else {
        reduce_columns<Max>(x, out, kept, reduced, results, count, splits);
    }
}

// dx = dy shared equally among the elements of x equal to y. A block a result.
KERNEL amax_gradient(const float* x, const float* y, const float* dy, float* dx, Strided kept,
                     Strided reduced, Index results, Index count) {
    __shared__ float shared[BLOCK / WARP];
    for (Index result = blockIdx.x; result < results; result += gridDim.x) {
        Index base = offset_of(kept, result);
        float ties = 0.0f;
        for (Index i = threadIdx.x; i < count; i += BLOCK) {
            ties += x[base + offset_of(reduced, i)] == y[result] ? 1.0f : 0.0f;
        }
        ties = block_join<Sum>(ties, shared);
        float part = ties > 0.0f ? dy[result] / ties : 0.0f;
        for (Index i = threadIdx.x; i < count; i += BLOCK) {
            Index at = base + offset_of(reduced, i);
            dx[at] = x[at] == y[result] ? part : 0.0f;
        }
    }
}

// The position of the first of the largest elements along an axis whose elements are `inner`
// apart; NaN wins.
KERNEL argmax(const float* x, Label* out, Index results, Index size, Index inner) {
    for (Index i = first_index(); i < results; i += index_step()) {
        const float* from = x + i / inner * inner * size + i % inner;
        Index best = 0;
        float largest = from[0];
        for (Index k = 1; k < size; k++) {
            float value = from[k * inner];
            if (value > largest || (value != value && largest == largest)) {
                best = k;
                largest = value;
            }
        }
        out[i] = best;
    }
}
