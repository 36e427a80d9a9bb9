// Attention without a matrix of all scores: of q [heads, queries, features], k [heads, keys, features]
// and v [heads, keys, values] tiles of 32 × 32 scores are computed, and again for the gradients (Dao
// et al. 2022). Results y [heads, queries, values + 1] end in ln Σ exp of the scores.
#include "device.cuh"

// Queries and keys of a tile.
#define SIDE 32
// Columns of a block's results.
#define COLUMNS 64
// Threads of a tile's row.
#define LANES (BLOCK / SIDE)
#define SCORES (SIDE / LANES)
#define RESULTS (COLUMNS / LANES)

struct Attention {
    Index queries, keys, features, values;
    // Elements of a bias's matrix, and between its rows and columns: 0 where there is one.
    Index matrix, row, column;
    int causal;
    float scale;
    // Where the matrix of each head lies.
    Strided biases;
};

typedef float Tile[SIDE][SIDE + 1];
typedef float Slab[SIDE][COLUMNS];

// Rows of a matrix: `count` of them from `data` on, `stride` elements apart.
struct Lines {
    const float* data;
    Index count, stride;
};

__device__ inline Lines lines(const float* data, Index first, Index end, Index stride) {
    Index count = end - first < SIDE ? end - first : SIDE;
    Lines result = {data + first * stride, count, stride};
    return result;
}

__device__ inline Index own_row() { return threadIdx.x / LANES; }
__device__ inline Index own_column(Index i) { return threadIdx.x % LANES + i * LANES; }

// sums[i] = a[own row] · b[own column i].
__device__ inline void multiply(Tile left, Tile right, Lines a, Lines b, Index depth,
                                float* sums) {
#pragma unroll
    for (Index i = 0; i < SCORES; i++) {
        sums[i] = 0.0f;
    }
    for (Index from = 0; from < depth; from += SIDE) {
        Index at = threadIdx.x % SIDE, d = from + at;
        __syncthreads();
#pragma unroll 1
        for (Index line = threadIdx.x / SIDE; line < SIDE; line += LANES) {
            left[line][at] = line < a.count && d < depth ? a.data[line * a.stride + d] : 0.0f;
            right[line][at] = line < b.count && d < depth ? b.data[line * b.stride + d] : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (Index k = 0; k < SIDE; k++) {
#pragma unroll
            for (Index i = 0; i < SCORES; i++) {
                sums[i] += left[own_row()][k] * right[own_column(i)][k];
            }
        }
    }
}

// Columns from `first` on.
__device__ inline void load(Slab slab, Lines from, Index first, Index columns) {
    Index at = threadIdx.x % COLUMNS, column = first + at;
#pragma unroll 1
    for (Index line = threadIdx.x / COLUMNS; line < SIDE; line += BLOCK / COLUMNS) {
        slab[line][at] =
            line < from.count && column < columns ? from.data[line * from.stride + column] : 0.0f;
    }
}

__device__ inline float score(const Attention& a, const float* bias, Index query, Index key,
                              float product) {
    if (query >= a.queries || key >= a.keys || (a.causal && key > query)) {
        return -INFINITY;
    }
    return product * a.scale + (bias ? bias[query * a.row + key * a.column] : 0.0f);
}

// A block has 32 queries and 64 columns of values.
KERNEL attention(const float* q, const float* k, const float* v, const float* bias, float* y,
                 Attention a) {
    __shared__ Tile left, right, weights;
    __shared__ Slab slab;
    Index tiles = (a.queries + SIDE - 1) / SIDE;
    Index head = blockIdx.x / tiles, first = blockIdx.x % tiles * SIDE;
    Index column = blockIdx.y * COLUMNS;
    const float* own_bias = bias ? bias + offset_of(a.biases, head) : bias;
    Lines queries = lines(q + head * a.queries * a.features, first, a.queries, a.features);
    float sums[RESULTS] = {}, scores[SCORES];
    float largest = -INFINITY, total = 0.0f;
    for (Index start = 0; start < a.keys; start += SIDE) {
        if (a.causal && start >= first + queries.count) {
            break;
        }
        Lines keys = lines(k + head * a.keys * a.features, start, a.keys, a.features);
        multiply(left, right, queries, keys, a.features, scores);
#pragma unroll
        for (Index i = 0; i < SCORES; i++) {
            Index key = own_column(i);
            weights[own_row()][key] =
                score(a, own_bias, first + own_row(), start + key, scores[i]);
        }
        load(slab, lines(v + head * a.keys * a.values, start, a.keys, a.values), column, a.values);
        __syncthreads();
        float most = largest;
#pragma unroll 4
        for (Index key = 0; key < SIDE; key++) {
            most = fmaxf(most, weights[own_row()][key]);
        }
        __syncthreads();
        // Where all is hidden so far, weights are 0 and not exp(∞ − ∞).
        float shift = most == -INFINITY ? 0.0f : most;
        float keep = expf(largest - shift);
        largest = most;
#pragma unroll
        for (Index i = 0; i < SCORES; i++) {
            float* weight = &weights[own_row()][own_column(i)];
            *weight = expf(*weight - shift);
        }
        __syncthreads();
        total *= keep;
#pragma unroll
        for (Index i = 0; i < RESULTS; i++) {
            sums[i] *= keep;
        }
#pragma unroll 4
        for (Index key = 0; key < keys.count; key++) {
            float weight = weights[own_row()][key];
            total += weight;
#pragma unroll
            for (Index i = 0; i < RESULTS; i++) {
                sums[i] += weight * slab[key][own_column(i)];
            }
        }
    }
    if (own_row() < queries.count) {
        float* to = y + (head * a.queries + first + own_row()) * (a.values + 1);
#pragma unroll
        for (Index i = 0; i < RESULTS; i++) {
            Index at = column + own_column(i);
            if (at < a.values) {
                to[at] = sums[i] / total;
            }
        }
        if (column == 0 && threadIdx.x % LANES == 0) {
            to[a.values] = largest + logf(total);
        }
    }
}

// What the gradients of a tile are computed from.
struct Gradients {
    const float *q, *k, *v, *y, *dy, *bias;
};

// Weights of a tile, and the gradients of its scores: weight · (dy · v − Σ dy·y).
__device__ inline void tile_of(const Gradients& g, const Attention& a, Index head, Index first,
                               Index start, Tile left, Tile right, Tile weights,
                               Tile gradients) {
    __shared__ float logs[SIDE], products[SIDE];
    Lines y = lines(g.y + head * a.queries * (a.values + 1), first, a.queries, a.values + 1);
    Lines dy = lines(g.dy + head * a.queries * (a.values + 1), first, a.queries, a.values + 1);
    __syncthreads();
#pragma unroll 1
    for (Index row = threadIdx.x / WARP; row < SIDE; row += BLOCK / WARP) {
        double sum = 0.0;
#pragma unroll 1
        for (Index i = threadIdx.x % WARP; i < a.values && row < y.count; i += WARP) {
            sum += double(y.data[row * y.stride + i]) * double(dy.data[row * y.stride + i]);
        }
        sum = warp_join<ExactSum>(sum);
        if (threadIdx.x % WARP == 0) {
            products[row] = float(sum);
            logs[row] = row < y.count ? y.data[row * y.stride + a.values] : INFINITY;
        }
    }
    float scores[SCORES], of_weights[SCORES];
    Lines queries = lines(g.q + head * a.queries * a.features, first, a.queries, a.features);
    Lines keys = lines(g.k + head * a.keys * a.features, start, a.keys, a.features);
    Lines values = lines(g.v + head * a.keys * a.values, start, a.keys, a.values);
    multiply(left, right, queries, keys, a.features, scores);
    multiply(left, right, dy, values, a.values, of_weights);
    const float* bias = g.bias ? g.bias + offset_of(a.biases, head) : g.bias;
#pragma unroll
    for (Index i = 0; i < SCORES; i++) {
        Index row = own_row(), key = own_column(i);
        float weight = expf(score(a, bias, first + row, start + key, scores[i]) - logs[row]);
        weights[row][key] = weight;
        gradients[row][key] = weight * (of_weights[i] - products[row]);
    }
}

// dq: a block has 32 queries and 64 features. `dx` [heads, queries·features + keys·(features +
// values)] holds the gradients of q, k and v one after the other.
KERNEL attention_query_gradient(const float* q, const float* k, const float* v, const float* y,
                                const float* dy, const float* bias, float* dx, Attention a) {
    __shared__ Tile left, right, weights, gradients;
    __shared__ Slab slab;
    Gradients g = {q, k, v, y, dy, bias};
    Index tiles = (a.queries + SIDE - 1) / SIDE;
    Index head = blockIdx.x / tiles, first = blockIdx.x % tiles * SIDE;
    Index column = blockIdx.y * COLUMNS;
    Index count = a.queries - first < SIDE ? a.queries - first : SIDE;
    float sums[RESULTS] = {};
    for (Index start = 0; start < a.keys; start += SIDE) {
        if (a.causal && start >= first + count) {
            break;
        }
        tile_of(g, a, head, first, start, left, right, weights, gradients);
        Lines keys = lines(k + head * a.keys * a.features, start, a.keys, a.features);
        load(slab, keys, column, a.features);
        __syncthreads();
#pragma unroll 4
        for (Index key = 0; key < keys.count; key++) {
            float gradient = gradients[own_row()][key];
#pragma unroll
            for (Index i = 0; i < RESULTS; i++) {
                sums[i] += gradient * slab[key][own_column(i)];
            }
        }
    }
    Index size = a.queries * a.features + a.keys * (a.features + a.values);
    float* to = dx + head * size + (first + own_row()) * a.features;
#pragma unroll
    for (Index i = 0; i < RESULTS; i++) {
        Index at = column + own_column(i);
        if (own_row() < count && at < a.features) {
            to[at] = a.scale * sums[i];
        }
    }
}

// dv where `of_values`, else dk: a block has 32 keys and 64 columns.
KERNEL attention_key_gradient(int of_values, const float* q, const float* k, const float* v,
                              const float* y, const float* dy, const float* bias, float* dx,
                              Attention a) {
    __shared__ Tile left, right, weights, gradients;
    __shared__ Slab slab;
    Gradients g = {q, k, v, y, dy, bias};
    Index tiles = (a.keys + SIDE - 1) / SIDE;
    Index head = blockIdx.x / tiles, start = blockIdx.x % tiles * SIDE;
    Index column = blockIdx.y * COLUMNS, columns = of_values ? a.values : a.features;
    Index count = a.keys - start < SIDE ? a.keys - start : SIDE;
    Index stride = of_values ? a.values + 1 : a.features;
    const float* from = (of_values ? dy : q) + head * a.queries * stride;
    float sums[RESULTS] = {};
    for (Index first = 0; first < a.queries; first += SIDE) {
        if (a.causal && start >= first + SIDE) {
            continue;
        }
        tile_of(g, a, head, first, start, left, right, weights, gradients);
        Lines queries = lines(from, first, a.queries, stride);
        load(slab, queries, column, columns);
        __syncthreads();
#pragma unroll 4
        for (Index query = 0; query < queries.count; query++) {
            float factor = of_values ? weights[query][own_row()] : gradients[query][own_row()];
#pragma unroll
            for (Index i = 0; i < RESULTS; i++) {
                sums[i] += factor * slab[query][own_column(i)];
            }
        }
    }
    Index size = a.queries * a.features + a.keys * (a.features + a.values);
    float* to = dx + head * size + a.queries * a.features;
    to += (of_values ? a.keys * a.features : 0) + (start + own_row()) * columns;
#pragma unroll
    for (Index i = 0; i < RESULTS; i++) {
        Index at = column + own_column(i);
        if (own_row() < count && at < columns) {
            to[at] = of_values ? sums[i] : a.scale * sums[i];
        }
    }
}

// The gradients of scores, added up over the heads of each matrix of the bias: a block has a tile of
// one matrix.
KERNEL attention_bias_gradient(const float* q, const float* k, const float* v, const float* y,
                               const float* dy, const float* bias, float* dbias, Index heads,
                               Attention a) {
    __shared__ Tile left, right, weights, gradients;
    Gradients g = {q, k, v, y, dy, bias};
    Index down = (a.queries + SIDE - 1) / SIDE, across = (a.keys + SIDE - 1) / SIDE;
    Index tile = blockIdx.x % (down * across), matrix = blockIdx.x / (down * across);
    Index first = tile / across * SIDE, start = tile % across * SIDE;
    float sums[SCORES] = {};
    for (Index head = 0; head < heads; head++) {
        if (offset_of(a.biases, head) != matrix * a.matrix) {
            continue;
        }
        tile_of(g, a, head, first, start, left, right, weights, gradients);
#pragma unroll
        for (Index i = 0; i < SCORES; i++) {
            sums[i] += gradients[own_row()][own_column(i)];
        }
    }
#pragma unroll
    for (Index i = 0; i < SCORES; i++) {
        Index query = first + own_row(), key = start + own_column(i);
        if (query < a.queries && key < a.keys) {
            dbias[(matrix * a.queries + query) * a.keys + key] = sums[i];
        }
    }
}
