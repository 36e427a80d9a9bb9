// Attention without a matrix of all scores: of q [heads, queries, features], k [heads, keys, features]
// and v [heads, keys, values] tiles of 64 × 64 scores are computed, and again for the gradients (Dao
// et al. 2022). Results y [heads, queries, values + 1] end in ln Σ exp of the scores.
//
// A thread computes 4 × 4 results of every product of a tile, from 4 rows of one operand and 4
// columns of the other, each read as one vector from shared memory. A warp has 8 whole rows.

// Three blocks a multiprocessor, which leaves a thread 80 registers: while one waits for memory, the
// others compute.
#ifndef KERNEL
#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK, 3)
#endif
#include "device.cuh"

// Queries, keys, and columns of values or features of a tile.
#define SIDE 64
// Rows and columns of a tile that a thread computes.
#define OWN 4
#define WARP_ROWS (2 * OWN)

struct Attention {
    Index queries, keys, features, values;
    // Elements of a bias's matrix, and between its rows and columns: 0 where there is one.
    Index matrix, row, column;
    int causal;
    float scale;
    // Where the matrix of each head lies.
    Strided biases;
};

// An operand of a product, whose terms are lines: element x of line k lies at x ^ k % 32. So neither
// 32 elements of a line nor one element of 32 lines share a bank, and 4 elements from a multiple of 4
// on stay one vector, in which element i is at i ^ k % 4.
struct alignas(16) Tile {
    float at[SIDE][SIDE];
};

typedef float Block[OWN][OWN];

// Rows of a matrix: `count` of them from `data` on, `stride` elements apart, of `columns` elements.
struct Lines {
    const float* data;
    Index count, stride, columns;
    // Whether 4 elements from a multiple of 4 on can be read at once.
    bool vectors;
};

// At most SIDE rows from `first` on, of `end`.
__device__ inline Lines lines(const float* data, Index first, Index end, Index stride,
                              Index columns) {
    Index count = end - first < SIDE ? end - first : SIDE;
    Index elements = stride | columns;
    bool vectors = elements % 4 == 0 && reinterpret_cast<size_t>(data) % 16 == 0;
    Lines result = {data + first * stride, count, stride, columns, vectors};
    return result;
}

// Lanes take turns between two rows of threads, so that both operands of a product are read by pairs
// of lanes that want the same vector: such reads take half the time.
__device__ inline Index own_row() {
    return threadIdx.x / WARP * WARP_ROWS + threadIdx.x % 2 * OWN;
}
__device__ inline Index own_column() { return threadIdx.x % WARP / 2 * OWN; }

// Joins the values of the 16 threads that have a row.
template <class Join>
__device__ inline float row_join(float value) {
#pragma unroll
    for (int lane = WARP / 2; lane > 1; lane /= 2) {
        value = Join::join(value, __shfl_xor_sync(0xffffffffu, value, lane));
    }
    return value;
}

// Not NaN where there is a number: a score that is NaN makes weights NaN itself.
struct Largest {
    static __device__ float join(float a, float b) { return fmaxf(a, b); }
};

// Writes 4 elements of line k + step, from x on; k and x are multiples of 4. `step` is known when
// compiled, so that the elements change places at no cost.
__device__ inline void put(Tile& tile, Index k, Index step, Index x, const float (&from)[OWN]) {
    float4 vector = {from[step], from[1 ^ step], from[2 ^ step], from[3 ^ step]};
    *reinterpret_cast<float4*>(&tile.at[k + step][x ^ k % 32]) = vector;
}

__device__ inline void get(const Tile& tile, Index k, Index step, Index x, float (&to)[OWN]) {
    float4 vector = *reinterpret_cast<const float4*>(&tile.at[k + step][x ^ k % 32]);
    to[step] = vector.x;
    to[1 ^ step] = vector.y;
    to[2 ^ step] = vector.z;
    to[3 ^ step] = vector.w;
}

// 4 elements, or 0 where there are none.
__device__ inline void read(const Lines& from, Index line, Index column, float (&to)[OWN]) {
    float4 vector = {0.0f, 0.0f, 0.0f, 0.0f};
    if (line < from.count && column < from.columns) {
        vector = *reinterpret_cast<const float4*>(from.data + line * from.stride + column);
    }
    to[0] = vector.x;
    to[1] = vector.y;
    to[2] = vector.z;
    to[3] = vector.w;
}

__device__ inline float read_one(const Lines& from, Index line, Index column) {
    bool there = line < from.count && column < from.columns;
    return there ? from.data[line * from.stride + column] : 0.0f;
}

// Terms of a product from `done` on, of `count`: those that a tile has.
__device__ inline Index depth_of(Index count, Index done) {
    return count - done < SIDE ? count - done : SIDE;
}

// Line k of the tile: column first + k of all rows.
__device__ inline void load_columns(Tile& tile, const Lines& from, Index first) {
    Index depth = depth_of(from.columns, first);
    if (from.vectors) {
#pragma unroll 1
        for (Index k = threadIdx.x % 8 * OWN; k < depth; k += 32) {
#pragma unroll
            for (Index line = threadIdx.x / 8; line < SIDE; line += BLOCK / 8) {
                float elements[OWN];
                read(from, line, first + k, elements);
#pragma unroll
                for (Index step = 0; step < OWN; step++) {
                    tile.at[k + step][line ^ (k + step) % 32] = elements[step];
                }
            }
        }
        return;
    }
    Index k = threadIdx.x % SIDE;
    // Products take 4 terms at a time.
    if (k < (depth + OWN - 1) / OWN * OWN) {
#pragma unroll 4
        for (Index line = threadIdx.x / SIDE; line < SIDE; line += BLOCK / SIDE) {
            tile.at[k][line ^ k % 32] = read_one(from, line, first + k);
        }
    }
}

// Line k of the tile: columns from `first` on of row k.
__device__ inline void load_rows(Tile& tile, const Lines& from, Index first) {
    if (from.vectors) {
        Index k = threadIdx.x / 16 * OWN, x = threadIdx.x % 16 * OWN;
#pragma unroll
        for (Index step = 0; step < OWN; step++) {
            float elements[OWN];
            read(from, k + step, first + x, elements);
            put(tile, k, step, x, elements);
        }
        return;
    }
    Index x = threadIdx.x % SIDE;
#pragma unroll 4
    for (Index k = threadIdx.x / SIDE; k < SIDE; k += BLOCK / SIDE) {
        tile.at[k][x ^ k % 32] = read_one(from, k, first + x);
    }
}

// sums += aᵀ·b over `depth` lines, where the block has `rows` rows.
__device__ inline void add_product(const Tile& a, const Tile& b, Index depth, Index rows,
                                   Block& sums) {
    if (threadIdx.x / WARP * WARP_ROWS >= rows) {
        return;
    }
#pragma unroll 4
    for (Index k = 0; k < depth; k += OWN) {
#pragma unroll
        for (Index step = 0; step < OWN; step++) {
            float left[OWN], right[OWN];
            get(a, k, step, own_row(), left);
            get(b, k, step, own_column(), right);
#pragma unroll
            for (Index i = 0; i < OWN; i++) {
#pragma unroll
                for (Index j = 0; j < OWN; j++) {
                    sums[i][j] += left[i] * right[j];
                }
            }
        }
    }
}

// sums[i][j] = a[own row + i] · b[own column + j].
__device__ inline void multiply(Tile& left, Tile& right, const Lines& a, const Lines& b,
                                Block& sums) {
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            sums[i][j] = 0.0f;
        }
    }
#pragma unroll 1
    for (Index first = 0; first < a.columns; first += SIDE) {
        __syncthreads();
        load_columns(left, a, first);
        load_columns(right, b, first);
        __syncthreads();
        add_product(left, right, depth_of(a.columns, first), a.count, sums);
    }
}

// Line k of the tile: column k of the block's rows. Each thread puts what it has.
__device__ inline void put_columns(Tile& tile, const Block& own) {
#pragma unroll
    for (Index j = 0; j < OWN; j++) {
        float column[OWN];
#pragma unroll
        for (Index i = 0; i < OWN; i++) {
            column[i] = own[i][j];
        }
        put(tile, own_column(), j, own_row(), column);
    }
}

// What the thread put.
__device__ inline void get_columns(const Tile& tile, Block& own) {
#pragma unroll
    for (Index j = 0; j < OWN; j++) {
        float column[OWN];
        get(tile, own_column(), j, own_row(), column);
#pragma unroll
        for (Index i = 0; i < OWN; i++) {
            own[i][j] = column[i];
        }
    }
}

// sums += factors · b's columns from `first` on, where the block has `rows` rows.
__device__ inline void add_weighted(Tile& left, Tile& right, const Block& factors, const Lines& b,
                                    Index first, Index rows, Block& sums) {
    __syncthreads();
    put_columns(left, factors);
    load_rows(right, b, first);
    __syncthreads();
    add_product(left, right, b.count, rows, sums);
}

// Queries or keys along one side of a tile, and the elements between them in a bias's matrix.
struct Axis {
    Index first, end, stride;
};

__device__ inline Axis queries_from(const Attention& a, Index first) {
    Axis axis = {first, a.queries, a.row};
    return axis;
}
__device__ inline Axis keys_from(const Attention& a, Index start) {
    Axis axis = {start, a.keys, a.column};
    return axis;
}

// Makes products of queries and keys scores: −∞ where there is none or the key is hidden.
template <bool rows_are_queries>
__device__ inline void score(const Attention& a, const float* bias, Axis down, Axis across,
                             Block& products) {
    Index first = down.first + own_row(), start = across.first + own_column();
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            products[i][j] *= a.scale;
        }
    }
    if (bias) {
#pragma unroll
        for (Index i = 0; i < OWN; i++) {
            Index row = first + i;
            for (Index j = 0; j < OWN; j++) {
                Index column = start + j;
                if (row < down.end && column < across.end) {
                    products[i][j] += bias[row * down.stride + column * across.stride];
                }
            }
        }
    }
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            Index row = first + i, column = start + j;
            bool after = rows_are_queries ? column > row : row > column;
            if (row >= down.end || column >= across.end || (a.causal && after)) {
                products[i][j] = -INFINITY;
            }
        }
    }
}

// Writes own rows, of `rows`, and columns from `first` on.
__device__ inline void write(float* to, Index stride, Index rows, Index first, Index columns,
                             const Block& results) {
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            Index row = own_row() + i, column = first + own_column() + j;
            if (row < rows && column < columns) {
                to[row * stride + column] = results[i][j];
            }
        }
    }
}

// The tile of a block: the last, of which causal attention sees most, is begun first.
__device__ inline Index first_of(Index tiles) {
    return (tiles - 1 - blockIdx.x % tiles) * SIDE;
}

// A block has 64 queries and 64 columns of values.
KERNEL attention(const float* q, const float* k, const float* v, const float* bias, float* y,
                 Attention a) {
    __shared__ Tile left, right;
    Index tiles = (a.queries + SIDE - 1) / SIDE;
    Index head = blockIdx.x / tiles, first = first_of(tiles);
    Index column = blockIdx.y * SIDE;
    const float* own_bias = bias ? bias + offset_of(a.biases, head) : bias;
    Lines queries = lines(q + head * a.queries * a.features, first, a.queries, a.features,
                          a.features);
    Block sums = {};
    float largest[OWN], totals[OWN];
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
        largest[i] = -INFINITY;
        totals[i] = 0.0f;
    }
#pragma unroll 1
    for (Index start = 0; start < a.keys; start += SIDE) {
        if (a.causal && start >= first + queries.count) {
            break;
        }
        Block weights;
        multiply(left, right, queries,
                 lines(k + head * a.keys * a.features, start, a.keys, a.features, a.features),
                 weights);
        score<true>(a, own_bias, queries_from(a, first), keys_from(a, start), weights);
#pragma unroll
        for (Index i = 0; i < OWN; i++) {
            float most = largest[i];
#pragma unroll
            for (Index j = 0; j < OWN; j++) {
                most = fmaxf(most, weights[i][j]);
            }
            most = row_join<Largest>(most);
            // Where all is hidden so far, weights are 0 and not exp(∞ − ∞).
            float shift = most == -INFINITY ? 0.0f : most;
            float keep = expf(largest[i] - shift);
            largest[i] = most;
            totals[i] *= keep;
#pragma unroll
            for (Index j = 0; j < OWN; j++) {
                sums[i][j] *= keep;
                weights[i][j] = expf(weights[i][j] - shift);
                totals[i] += weights[i][j];
            }
        }
        add_weighted(left, right, weights,
                     lines(v + head * a.keys * a.values, start, a.keys, a.values, a.values),
                     column, queries.count, sums);
    }
    float* to = y + (head * a.queries + first) * (a.values + 1);
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
        float total = row_join<Sum>(totals[i]);
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            sums[i][j] /= total;
        }
        if (column == 0 && own_column() == 0 && own_row() + i < queries.count) {
            to[(own_row() + i) * (a.values + 1) + a.values] = largest[i] + logf(total);
        }
    }
    write(to, a.values + 1, queries.count, column, a.values, sums);
}

// What gradients are computed from.
struct Gradients {
    const float *q, *k, *v, *y, *dy, *bias;
};

// Operands of one head from a row on.
__device__ inline Lines queries_of(const Gradients& g, const Attention& a, Index head, Index first) {
    return lines(g.q + head * a.queries * a.features, first, a.queries, a.features, a.features);
}
__device__ inline Lines keys_of(const Gradients& g, const Attention& a, Index head, Index start) {
    return lines(g.k + head * a.keys * a.features, start, a.keys, a.features, a.features);
}
__device__ inline Lines values_of(const Gradients& g, const Attention& a, Index head, Index start) {
    return lines(g.v + head * a.keys * a.values, start, a.keys, a.values, a.values);
}
__device__ inline Lines results_of(const Gradients& g, const Attention& a, Index head, Index first) {
    return lines(g.dy + head * a.queries * (a.values + 1), first, a.queries, a.values + 1,
                 a.values);
}
__device__ inline const float* bias_of(const Gradients& g, const Attention& a, Index head) {
    return g.bias ? g.bias + offset_of(a.biases, head) : g.bias;
}

// Elements of the gradients of a head's q, k and v.
__device__ inline Index gradients_of(const Attention& a) {
    return a.queries * a.features + a.keys * (a.features + a.values);
}

// Σ dy·y of row `row` of all heads' queries; every thread of a warp gets it.
__device__ inline float row_product(const float* y, const float* dy, Index row, Index values) {
    y += row * (values + 1);
    dy += row * (values + 1);
    double sum = 0.0;
#pragma unroll 1
    for (Index i = threadIdx.x % WARP; i < values; i += WARP) {
        sum += double(y[i]) * double(dy[i]);
    }
    return float(warp_join<ExactSum>(sum));
}

// Σ dy·y of every query of a head, at the head of its gradients: those of the queries come there
// once those of the keys and values have been computed from it. A warp has a query.
KERNEL attention_row_products(const float* y, const float* dy, float* dx, Index heads,
                              Attention a) {
    Index count = heads * a.queries, step = index_step() / WARP;
    for (Index row = first_index() / WARP; row < count; row += step) {
        float product = row_product(y, dy, row, a.values);
        Index head = row / a.queries;
        if (threadIdx.x % WARP == 0) {
            dx[head * gradients_of(a) + row % a.queries] = product;
        }
    }
}

// Σ dy·y and ln Σ exp of the scores, of a block's queries.
struct Rows {
    float products[SIDE], logs[SIDE];
};

__device__ inline void load(Rows& rows, const Gradients& g, const Attention& a, Index head,
                            Index first) {
    __syncthreads();
#pragma unroll 1
    for (Index row = threadIdx.x / WARP; row < SIDE; row += BLOCK / WARP) {
        bool there = first + row < a.queries;
        Index from = head * a.queries + first + row;
        float product = there ? row_product(g.y, g.dy, from, a.values) : 0.0f;
        if (threadIdx.x % WARP == 0) {
            rows.products[row] = product;
            rows.logs[row] = there ? g.y[from * (a.values + 1) + a.values] : INFINITY;
        }
    }
    __syncthreads();
}

// The gradients of a tile's scores: weight · (dy · v − Σ dy·y). Rows are queries.
__device__ inline void score_gradients(const Gradients& g, const Attention& a, Index head,
                                        Index first, Index start, const Rows& rows,
                                       Tile& left, Tile& right, Block& gradients) {
    Block scores;
    multiply(left, right, queries_of(g, a, head, first), keys_of(g, a, head, start), scores);
    score<true>(a, bias_of(g, a, head), queries_from(a, first), keys_from(a, start), scores);
    multiply(left, right, results_of(g, a, head, first), values_of(g, a, head, start), gradients);
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            float weight = expf(scores[i][j] - rows.logs[own_row() + i]);
            gradients[i][j] = weight * (gradients[i][j] - rows.products[own_row() + i]);
        }
    }
}

// dq: a block has 64 queries and 64 features. `dx` [heads, queries·features + keys·(features +
// values)] holds the gradients of q, k and v one after the other.
KERNEL attention_query_gradient(const float* q, const float* k, const float* v, const float* y,
                                const float* dy, const float* bias, float* dx, Attention a) {
    __shared__ Tile left, right;
    __shared__ Rows rows;
    Gradients g = {q, k, v, y, dy, bias};
    Index tiles = (a.queries + SIDE - 1) / SIDE;
    Index head = blockIdx.x / tiles, first = first_of(tiles);
    Index column = blockIdx.y * SIDE;
    Index count = a.queries - first < SIDE ? a.queries - first : SIDE;
    load(rows, g, a, head, first);
    Block sums = {};
#pragma unroll 1
    for (Index start = 0; start < a.keys; start += SIDE) {
        if (a.causal && start >= first + count) {
            break;
        }
        Block gradients;
        score_gradients(g, a, head, first, start, rows, left, right, gradients);
        add_weighted(left, right, gradients, keys_of(g, a, head, start), column, count, sums);
    }
#pragma unroll
    for (Index i = 0; i < OWN; i++) {
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            sums[i][j] *= a.scale;
        }
    }
    float* to = dx + head * gradients_of(a) + first * a.features;
    write(to, a.features, count, column, a.features, sums);
}

// dk where `of_keys`, dv where `of_values`, after `attention_row_products`: a block has 64 keys and
// 64 columns of each. Rows are keys.
KERNEL attention_key_gradient(int of_keys, int of_values, const float* q, const float* k,
                              const float* v, const float* y, const float* dy, const float* bias,
                              float* dx, Attention a) {
    __shared__ Tile left, right, kept;
    Gradients g = {q, k, v, y, dy, bias};
    Index tiles = (a.keys + SIDE - 1) / SIDE;
    Index head = blockIdx.x / tiles, start = blockIdx.x % tiles * SIDE;
    Index column = blockIdx.y * SIDE;
    Lines keys = keys_of(g, a, head, start);
    float* dq = dx + head * gradients_of(a);
    Block key_sums = {}, value_sums = {};
    // Queries before the first key see none.
#pragma unroll 1
    for (Index first = a.causal ? start : 0; first < a.queries; first += SIDE) {
        Block weights;
        multiply(left, right, keys, queries_of(g, a, head, first), weights);
        score<false>(a, bias_of(g, a, head), keys_from(a, start), queries_from(a, first), weights);
#pragma unroll
        for (Index j = 0; j < OWN; j++) {
            Index query = first + own_column() + j;
            Index end = (head * a.queries + query) * (a.values + 1) + a.values;
            float log = query < a.queries ? y[end] : INFINITY;
#pragma unroll
            for (Index i = 0; i < OWN; i++) {
                weights[i][j] = expf(weights[i][j] - log);
            }
        }
        put_columns(kept, weights);
        if (of_values) {
            Lines results = results_of(g, a, head, first);
            __syncthreads();
            load_rows(right, results, column);
            __syncthreads();
            add_product(kept, right, results.count, keys.count, value_sums);
        }
        if (of_keys) {
            Block gradients;
            multiply(left, right, values_of(g, a, head, start), results_of(g, a, head, first),
                     gradients);
            get_columns(kept, weights);
#pragma unroll
            for (Index j = 0; j < OWN; j++) {
                Index query = first + own_column() + j;
                float product = query < a.queries ? dq[query] : 0.0f;
#pragma unroll
                for (Index i = 0; i < OWN; i++) {
                    gradients[i][j] = weights[i][j] * (gradients[i][j] - product);
                }
            }
            add_weighted(left, right, gradients, queries_of(g, a, head, first), column, keys.count,
                         key_sums);
        }
    }
    float* dk = dq + a.queries * a.features;
    float* dv = dk + a.keys * a.features;
    if (of_keys) {
#pragma unroll
        for (Index i = 0; i < OWN; i++) {
#pragma unroll
            for (Index j = 0; j < OWN; j++) {
                key_sums[i][j] *= a.scale;
            }
        }
        write(dk + start * a.features, a.features, keys.count, column, a.features, key_sums);
    }
    if (of_values) {
        write(dv + start * a.values, a.values, keys.count, column, a.values, value_sums);
    }
}

// The gradients of scores, added up over the heads of each matrix of the bias: a block has a tile of
// one matrix.
KERNEL attention_bias_gradient(const float* q, const float* k, const float* v, const float* y,
                               const float* dy, const float* bias, float* dbias, Index heads,
                               Attention a) {
    __shared__ Tile left, right;
    __shared__ Rows rows;
    Gradients g = {q, k, v, y, dy, bias};
    Index down = (a.queries + SIDE - 1) / SIDE, across = (a.keys + SIDE - 1) / SIDE;
    Index tile = blockIdx.x % (down * across), matrix = blockIdx.x / (down * across);
    Index first = tile / across * SIDE, start = tile % across * SIDE;
    Block sums = {};
#pragma unroll 1
    for (Index head = 0; head < heads; head++) {
        if (offset_of(a.biases, head) != matrix * a.matrix) {
            continue;
        }
        load(rows, g, a, head, first);
        Block gradients;
        score_gradients(g, a, head, first, start, rows, left, right, gradients);
#pragma unroll
        for (Index i = 0; i < OWN; i++) {
#pragma unroll
            for (Index j = 0; j < OWN; j++) {
                sums[i][j] += gradients[i][j];
            }
        }
    }
    float* to = dbias + (matrix * a.queries + first) * a.keys;
    write(to, a.keys, a.queries - first, start, a.keys, sums);
}
