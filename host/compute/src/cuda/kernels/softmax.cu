// Softmax and its logarithm, shifted by the largest element so that nothing overflows.
#include "device.cuh"

// Rows of contiguous elements, a warp each.
KERNEL softmax_rows(int log, const float* x, float* y, Index rows, Index size) {
    Index lane = threadIdx.x % WARP;
    for (Index row = first_index() / WARP; row < rows; row += index_step() / WARP) {
        const float* from = x + row * size;
        float* to = y + row * size;
        float largest = -INFINITY, sum = 0.0f;
        for (Index k = lane; k < size; k += WARP) {
            largest = fmaxf(largest, from[k]);
        }
        largest = warp_join<Max>(largest);
        for (Index k = lane; k < size; k += WARP) {
            sum += expf(from[k] - largest);
        }
        sum = warp_join<Sum>(sum);
        float log_sum = logf(sum);
        for (Index k = lane; k < size; k += WARP) {
            float shifted = from[k] - largest;
            to[k] = log ? shifted - log_sum : expf(shifted) / sum;
        }
    }
}

// softmax: y·(dy − Σ y·dy); log-softmax: dy − exp(y)·Σ dy.
KERNEL softmax_rows_gradient(int log, const float* y, const float* dy, float* dx, Index rows,
                             Index size) {
    Index lane = threadIdx.x % WARP;
    for (Index row = first_index() / WARP; row < rows; row += index_step() / WARP) {
        Index start = row * size;
        float sum = 0.0f;
        for (Index k = start + lane; k < start + size; k += WARP) {
            sum += log ? dy[k] : y[k] * dy[k];
        }
        sum = warp_join<Sum>(sum);
        for (Index k = start + lane; k < start + size; k += WARP) {
            dx[k] = log ? dy[k] - expf(y[k]) * sum : y[k] * (dy[k] - sum);
        }
    }
}

// Lines whose elements are `inner` apart, a thread each: neighbours read neighbours.
KERNEL softmax_lines(int log, const float* x, float* y, Index lines, Index size, Index inner) {
    for (Index line = first_index(); line < lines; line += index_step()) {
        Index start = line / inner * inner * size + line % inner;
        float largest = -INFINITY, sum = 0.0f;
        for (Index k = 0; k < size; k++) {
            largest = fmaxf(largest, x[start + k * inner]);
        }
        for (Index k = 0; k < size; k++) {
            sum += expf(x[start + k * inner] - largest);
        }
        float log_sum = logf(sum);
        for (Index k = 0; k < size; k++) {
            float shifted = x[start + k * inner] - largest;
            y[start + k * inner] = log ? shifted - log_sum : expf(shifted) / sum;
        }
    }
}

KERNEL softmax_lines_gradient(int log, const float* y, const float* dy, float* dx, Index lines,
                              Index size, Index inner) {
    for (Index line = first_index(); line < lines; line += index_step()) {
        Index start = line / inner * inner * size + line % inner;
        float sum = 0.0f;
        for (Index k = 0; k < size; k++) {
            Index at = start + k * inner;
            sum += log ? dy[at] : y[at] * dy[at];
        }
        for (Index k = 0; k < size; k++) {
            Index at = start + k * inner;
            dx[at] = log ? dy[at] - expf(y[at]) * sum : y[at] * (dy[at] - sum);
        }
    }
}
