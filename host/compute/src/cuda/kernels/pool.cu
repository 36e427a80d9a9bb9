// Pooling over windows. Gradients are gathered by the pixels of x, so that no two threads add to
// one place.
#include "device.cuh"

struct Pool {
    Index height, width, rows, columns;
    Index window_height, window_width, stride_height, stride_width, padding_height, padding_width;
};

// The pixels of a window that lie in the image: [first, last).
__device__ inline Index first_pixel(Index at, Index stride, Index padding) {
    return at * stride > padding ? at * stride - padding : 0;
}
__device__ inline Index last_pixel(Index at, Index stride, Index padding, Index window, Index size) {
    Index end = at * stride + window;
    end = end > padding ? end - padding : 0;
    return end < size ? end : size;
}

// The first of the largest pixels of a window; NaN wins.
__device__ inline Index largest_pixel(const float* x, const Pool& p, Index row, Index column) {
    Index y0 = first_pixel(row, p.stride_height, p.padding_height);
    Index y1 = last_pixel(row, p.stride_height, p.padding_height, p.window_height, p.height);
    Index x0 = first_pixel(column, p.stride_width, p.padding_width);
    Index x1 = last_pixel(column, p.stride_width, p.padding_width, p.window_width, p.width);
    Index best = y0 * p.width + x0;
    float largest = x[best];
    for (Index i = y0; i < y1; i++) {
        for (Index j = x0; j < x1; j++) {
            float value = x[i * p.width + j];
            if (value > largest || (value != value && largest == largest)) {
                best = i * p.width + j;
                largest = value;
            }
        }
    }
    return best;
}

KERNEL pool2d(int maximum, const float* x, float* y, Pool p, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index column = i % p.columns, rest = i / p.columns;
        Index row = rest % p.rows;
        const float* from = x + rest / p.rows * p.height * p.width;
        if (maximum) {
            y[i] = from[largest_pixel(from, p, row, column)];
            continue;
        }
        Index y0 = first_pixel(row, p.stride_height, p.padding_height);
        Index y1 = last_pixel(row, p.stride_height, p.padding_height, p.window_height, p.height);
        Index x0 = first_pixel(column, p.stride_width, p.padding_width);
        Index x1 = last_pixel(column, p.stride_width, p.padding_width, p.window_width, p.width);
        float sum = 0.0f;
        for (Index a = y0; a < y1; a++) {
            for (Index b = x0; b < x1; b++) {
                sum += from[a * p.width + b];
            }
        }
        y[i] = sum / float(p.window_height * p.window_width);
    }
}

// The windows that hold a pixel: [first, last).
__device__ inline Index first_window(Index at, Index stride, Index padding, Index window) {
    Index reach = at + padding;
    return reach >= window ? (reach - window) / stride + 1 : 0;
}
__device__ inline Index last_window(Index at, Index stride, Index padding, Index windows) {
    Index end = (at + padding) / stride + 1;
    return end < windows ? end : windows;
}

KERNEL pool2d_gradient(int maximum, const float* x, const float* dy, float* dx, Pool p, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index column = i % p.width, rest = i / p.width;
        Index row = rest % p.height, plane = rest / p.height;
        const float* from = x + plane * p.height * p.width;
        const float* slope = dy + plane * p.rows * p.columns;
        Index r1 = last_window(row, p.stride_height, p.padding_height, p.rows);
        Index c1 = last_window(column, p.stride_width, p.padding_width, p.columns);
        Index c0 = first_window(column, p.stride_width, p.padding_width, p.window_width);
        float sum = 0.0f;
        for (Index r = first_window(row, p.stride_height, p.padding_height, p.window_height); r < r1;
             r++) {
            for (Index c = c0; c < c1; c++) {
                if (!maximum) {
                    sum += slope[r * p.columns + c] / float(p.window_height * p.window_width);
                } else if (largest_pixel(from, p, r, c) == row * p.width + column) {
                    sum += slope[r * p.columns + c];
                }
            }
        }
        dx[i] = sum;
    }
}
