// Reductions.
#include "reduce.cuh"

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
    } else if (kind == MAX) {
        reduce_block<Max>(x, out, kept, reduced, results, count, splits);
    } else {
        reduce_block<Min>(x, out, kept, reduced, results, count, splits);
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
    } else if (kind == MAX) {
        reduce_columns<Max>(x, out, kept, reduced, results, count, splits);
    } else {
        reduce_columns<Min>(x, out, kept, reduced, results, count, splits);
    }
}

// dx = dy shared equally among the elements of x equal to y. A block a result.
KERNEL extreme_gradient(const float* x, const float* y, const float* dy, float* dx, Strided kept,
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

// The position of the first of the largest (or smallest) elements along an axis whose elements are
// `inner` apart; NaN wins.
KERNEL argmax(const float* x, Label* out, int smallest, Index results, Index size, Index inner) {
    for (Index i = first_index(); i < results; i += index_step()) {
        const float* from = x + i / inner * inner * size + i % inner;
        Index best = 0;
        float found = from[0];
        for (Index k = 1; k < size; k++) {
            float value = from[k * inner];
            bool beats = smallest ? value < found : value > found;
            if (beats || (value != value && found == found)) {
                best = k;
                found = value;
            }
        }
        out[i] = best;
    }
}

// Whether element (a, at i) comes before element (b, at k) in the order of top_k.
__device__ inline bool before(float a, Index i, float b, Index k, int smallest) {
    bool a_nan = a != a, b_nan = b != b;
    if (a_nan || b_nan) {
        return a_nan && (!b_nan || i < k);
    }
    return a == b ? i < k : smallest ? a < b : a > b;
}

// The positions of the `count` largest (or smallest) elements of each line, in their order. A
// thread has a line, and looks for each position after the one before.
KERNEL top_k(const float* x, Label* out, int smallest, Index lines, Index size, Index inner,
             Index count) {
    for (Index line = first_index(); line < lines; line += index_step()) {
        const float* from = x + line / inner * inner * size + line % inner;
        Label* to = out + line / inner * inner * count + line % inner;
        Index last = 0;
        for (Index rank = 0; rank < count; rank++) {
            Index best = size;
            for (Index k = 0; k < size; k++) {
                bool left = rank == 0 ||
                            before(from[last * inner], last, from[k * inner], k, smallest);
                if (left && (best == size || before(from[k * inner], k, from[best * inner], best,
                                                    smallest))) {
                    best = k;
                }
            }
            last = best;
            to[rank * inner] = best;
        }
    }
}

// Sums of all elements up to each of a line, or from each on. A thread has a line.
KERNEL cumsum(const float* x, float* y, int reverse, Index lines, Index size, Index inner) {
    for (Index line = first_index(); line < lines; line += index_step()) {
        Index start = line / inner * inner * size + line % inner;
        double total = 0.0;
        for (Index step = 0; step < size; step++) {
            Index at = start + (reverse ? size - 1 - step : step) * inner;
            total += x[at];
            y[at] = float(total);
        }
    }
}
