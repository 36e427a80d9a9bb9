// Two-dimensional convolution as matrix products whose operands are read from the images in place
// (implicit GEMM): no patch matrix is stored. Forward, gradient of x and gradient of the weight
// differ in what the rows, columns and the summed axis of the product are.
#include "device.cuh"

struct Conv {
    Index batch, channels, height, width, out, rows, columns;
    Index kernel_height, kernel_width, stride_height, stride_width;
    Index padding_height, padding_width, dilation_height, dilation_width, groups;
};

// Rows, columns and summed elements of a product of one group.
struct Extent {
    Index m, n, k;
};

// A pixel of every image of a batch.
struct Pixel {
    Index sample, row, column;
};

__device__ inline Pixel pixel_of(Index n, Index rows, Index columns) {
    Index size = rows * columns;
    Pixel p;
    p.sample = n / size;
    n -= p.sample * size;
    p.row = n / columns;
    p.column = n - p.row * columns;
    return p;
}

// A place of a window of one channel.
struct Tap {
    Index channel, row, column;
};

__device__ inline Tap tap_of(Index k, const Conv& c) {
    Index window = c.kernel_height * c.kernel_width;
    Tap t;
    t.channel = k / window;
    k -= t.channel * window;
    t.row = k / c.kernel_width;
    t.column = k - t.row * c.kernel_width;
    return t;
}

// The pixel of x that a tap of the window of a result sees; 0 outside the image. Unsigned
// arithmetic wraps below 0 to more than any size.
__device__ inline float seen(const float* x, const Conv& c, Index group, Pixel p, Tap t) {
    Index row = p.row * c.stride_height + t.row * c.dilation_height - c.padding_height;
    Index column = p.column * c.stride_width + t.column * c.dilation_width - c.padding_width;
    if (row >= c.height || column >= c.width) {
        return 0.0f;
    }
    Index channel = group * (c.channels / c.groups) + t.channel;
    return x[((p.sample * c.channels + channel) * c.height + row) * c.width + column];
}

// y[out, (sample, pixel)] = Σ over taps of weight[out, tap] · x.
struct Forward {
    const float* x;
    const float* weight;
    const float* bias;
    float* y;
    typedef Pixel Column;
    __device__ Extent extent(const Conv& c) const {
        return {c.out / c.groups, c.batch * c.rows * c.columns,
                c.channels / c.groups * c.kernel_height * c.kernel_width};
    }
    __device__ Column column(const Conv& c, Index n) const {
        return pixel_of(n, c.rows, c.columns);
    }
    __device__ float a(const Conv& c, Extent e, Index group, Index m, Index k) const {
        return weight[(group * e.m + m) * e.k + k];
    }
    __device__ float b(const Conv& c, Index group, Index k, Column n) const {
        return seen(x, c, group, n, tap_of(k, c));
    }
    __device__ float term(const Conv& c, Extent e, Index group, Index m, Tap t, Column n) const {
        Index k = (t.channel * c.kernel_height + t.row) * c.kernel_width + t.column;
        return a(c, e, group, m, k) * seen(x, c, group, n, t);
    }
    __device__ void store(const Conv& c, Extent e, Index group, Index m, Index n, float v) const {
        Pixel p = pixel_of(n, c.rows, c.columns);
        Index out = group * e.m + m;
        y[((p.sample * c.out + out) * c.rows + p.row) * c.columns + p.column] =
            bias ? v + bias[out] : v;
    }
};

// dx[channel, (sample, pixel)] = Σ over (out, tap) of weight[out, channel, tap] · dy where a
// window has this pixel at that tap.
struct InputGradient {
    const float* dy;
    const float* weight;
    float* dx;
    typedef Pixel Column;
    __device__ Extent extent(const Conv& c) const {
        return {c.channels / c.groups, c.batch * c.height * c.width,
                c.out / c.groups * c.kernel_height * c.kernel_width};
    }
    __device__ Column column(const Conv& c, Index n) const {
        return pixel_of(n, c.height, c.width);
    }
    __device__ float weight_at(const Conv& c, Extent e, Index group, Index m, Tap t) const {
        Index out = group * (c.out / c.groups) + t.channel;
        return weight[((out * e.m + m) * c.kernel_height + t.row) * c.kernel_width + t.column];
    }
    __device__ float gradient_at(const Conv& c, Index group, Tap t, Column n) const {
        Index row = n.row + c.padding_height - t.row * c.dilation_height;
        Index column = n.column + c.padding_width - t.column * c.dilation_width;
        Index at_row = row / c.stride_height, at_column = column / c.stride_width;
        if (at_row >= c.rows || at_column >= c.columns || at_row * c.stride_height != row ||
            at_column * c.stride_width != column) {
            return 0.0f;
        }
        Index out = group * (c.out / c.groups) + t.channel;
        return dy[((n.sample * c.out + out) * c.rows + at_row) * c.columns + at_column];
    }
    __device__ float a(const Conv& c, Extent e, Index group, Index m, Index k) const {
        return weight_at(c, e, group, m, tap_of(k, c));
    }
    __device__ float b(const Conv& c, Index group, Index k, Column n) const {
        return gradient_at(c, group, tap_of(k, c), n);
    }
    __device__ float term(const Conv& c, Extent e, Index group, Index m, Tap t, Column n) const {
        return weight_at(c, e, group, m, t) * gradient_at(c, group, t, n);
    }
    __device__ void store(const Conv& c, Extent e, Index group, Index m, Index n, float v) const {
        Pixel p = pixel_of(n, c.height, c.width);
        Index channel = group * e.m + m;
        dx[((p.sample * c.channels + channel) * c.height + p.row) * c.width + p.column] = v;
    }
};

// dweight[out, tap] = Σ over (sample, pixel) of dy[out] · x.
struct WeightGradient {
    const float* x;
    const float* dy;
    float* dweight;
    typedef Tap Column;
    __device__ Extent extent(const Conv& c) const {
        return {c.out / c.groups, c.channels / c.groups * c.kernel_height * c.kernel_width,
                c.batch * c.rows * c.columns};
    }
    __device__ Column column(const Conv& c, Index n) const { return tap_of(n, c); }
    __device__ float a(const Conv& c, Extent e, Index group, Index m, Index k) const {
        Index size = c.rows * c.columns, sample = k / size;
        return dy[(sample * c.out + group * e.m + m) * size + (k - sample * size)];
    }
    __device__ float b(const Conv& c, Index group, Index k, Column n) const {
        return seen(x, c, group, pixel_of(k, c.rows, c.columns), n);
    }
    __device__ void store(const Conv& c, Extent e, Index group, Index m, Index n, float v) const {
        dweight[(group * e.m + m) * e.n + n] = v;
    }
};

#define TILE 64
#define DEPTH 16
// Results of a thread along each side of its part of a tile.
#define SIDE 4

// A block computes a tile of [64, 64] results, 4 × 4 a thread, 16 summed elements at a time.
// blockIdx.z is group · splits + split: where there are few results, the summed elements are
// divided among `splits` blocks.
template <class Product>
__device__ inline void tiled(const Product& product, const Conv& c, Index splits) {
    __shared__ float a[DEPTH][TILE + 1];
    __shared__ float b[DEPTH][TILE];
    Extent e = product.extent(c);
    Index group = blockIdx.z / splits, split = blockIdx.z % splits;
    Index m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    Index share = (e.k + splits - 1) / splits;
    Index first = split * share, last = first + share < e.k ? first + share : e.k;
    Index own_m = threadIdx.x / (TILE / SIDE) * SIDE, own_n = threadIdx.x % (TILE / SIDE) * SIDE;
    Index column = n0 + threadIdx.x % TILE;
    typename Product::Column of = product.column(c, column < e.n ? column : 0);
    float sums[SIDE][SIDE] = {};
    for (Index k0 = first; k0 < last; k0 += DEPTH) {
        for (Index i = threadIdx.x / DEPTH; i < TILE; i += BLOCK / DEPTH) {
            Index m = m0 + i, k = k0 + threadIdx.x % DEPTH;
            a[threadIdx.x % DEPTH][i] =
                m < e.m && k < last ? product.a(c, e, group, m, k) : 0.0f;
        }
        for (Index i = threadIdx.x / TILE; i < DEPTH; i += BLOCK / TILE) {
            Index k = k0 + i;
            b[i][threadIdx.x % TILE] =
                column < e.n && k < last ? product.b(c, group, k, of) : 0.0f;
        }
        __syncthreads();
        // Sums of sums: the error of a long one grows with the number of parts, not of elements.
        float part[SIDE][SIDE] = {};
#pragma unroll
        for (Index k = 0; k < DEPTH; k++) {
#pragma unroll
            for (Index i = 0; i < SIDE; i++) {
#pragma unroll
                for (Index j = 0; j < SIDE; j++) {
                    part[i][j] += a[k][own_m + i] * b[k][own_n + j];
                }
            }
        }
#pragma unroll
        for (Index i = 0; i < SIDE; i++) {
#pragma unroll
            for (Index j = 0; j < SIDE; j++) {
                sums[i][j] += part[i][j];
            }
        }
        __syncthreads();
    }
    for (Index i = 0; i < SIDE; i++) {
        for (Index j = 0; j < SIDE; j++) {
            if (m0 + own_m + i < e.m && n0 + own_n + j < e.n) {
                product.store(c, e, group, m0 + own_m + i, n0 + own_n + j, sums[i][j]);
            }
        }
    }
}

// A thread a result: for groups of so few channels that a tile would be mostly empty.
template <class Product>
__device__ inline void direct(const Product& product, const Conv& c, Index n) {
    Extent e = product.extent(c);
    for (Index i = first_index(); i < n; i += index_step()) {
        Index column = i % e.n, rest = i / e.n;
        Index m = rest % e.m, group = rest / e.m;
        typename Product::Column of = product.column(c, column);
        float sum = 0.0f;
        Index channels = e.k / (c.kernel_height * c.kernel_width);
        for (Index channel = 0; channel < channels; channel++) {
            for (Index row = 0; row < c.kernel_height; row++) {
                for (Index at = 0; at < c.kernel_width; at++) {
                    sum += product.term(c, e, group, m, {channel, row, at}, of);
                }
            }
        }
        product.store(c, e, group, m, column, sum);
    }
}

KERNEL conv2d_tiled(const float* x, const float* weight, const float* bias, float* y, Conv c) {
    Forward product = {x, weight, bias, y};
    tiled(product, c, 1);
}

KERNEL conv2d_direct(const float* x, const float* weight, const float* bias, float* y, Conv c,
                     Index n) {
    Forward product = {x, weight, bias, y};
    direct(product, c, n);
}

KERNEL conv2d_input_gradient_tiled(const float* dy, const float* weight, float* dx, Conv c) {
    InputGradient product = {dy, weight, dx};
    tiled(product, c, 1);
}

KERNEL conv2d_input_gradient_direct(const float* dy, const float* weight, float* dx, Conv c,
                                    Index n) {
    InputGradient product = {dy, weight, dx};
    direct(product, c, n);
}

// Split s goes to dweight + s · elements; a second pass adds the splits.
KERNEL conv2d_weight_gradient_tiled(const float* x, const float* dy, float* dweight, Conv c,
                                    Index splits, Index elements) {
    WeightGradient product = {x, dy, dweight + blockIdx.z % splits * elements};
    tiled(product, c, splits);
}

// A block a result.
KERNEL conv2d_weight_gradient_direct(const float* x, const float* dy, float* dweight, Conv c,
                                     Index n) {
    __shared__ float shared[BLOCK / WARP];
    WeightGradient product = {x, dy, dweight};
    Extent e = product.extent(c);
    for (Index i = blockIdx.x; i < n; i += gridDim.x) {
        Index column = i % e.n, rest = i / e.n;
        Index m = rest % e.m, group = rest / e.m;
        Tap of = product.column(c, column);
        float sum = 0.0f;
        for (Index k = threadIdx.x; k < e.k; k += BLOCK) {
            sum += product.a(c, e, group, m, k) * product.b(c, group, k, of);
        }
        sum = block_join<Sum>(sum, shared);
        if (threadIdx.x == 0) {
            product.store(c, e, group, m, column, sum);
        }
    }
}
