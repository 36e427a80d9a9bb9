// Softmax cross-entropy of logits [batch, classes] with labels [batch], fused: no probabilities
// are stored. A warp takes a row.
#include "device.cuh"

__device__ inline float log_sum_exp(const float* x, Index classes, Index lane) {
    float largest = -INFINITY, sum = 0.0f;
    for (Index k = lane; k < classes; k += WARP) {
        largest = fmaxf(largest, x[k]);
    }
    largest = warp_join<Max>(largest);
    for (Index k = lane; k < classes; k += WARP) {
        sum += expf(x[k] - largest);
    }
    return largest + logf(warp_join<Sum>(sum));
}

// loss[row] = (−(1 − s)·log p(label) − s/classes·Σ log p) / rows, with smoothing s (Szegedy et al.
// 2016): the sum of all rows is the mean loss.
KERNEL cross_entropy_rows(const float* logits, const Label* labels, float* loss, Index rows,
                          Index classes, float smoothing, unsigned int node, ErrorWord* error) {
    Index lane = threadIdx.x % WARP;
    for (Index row = first_index() / WARP; row < rows; row += index_step() / WARP) {
        const float* x = logits + row * classes;
        Label label = labels[row];
        bool valid = label >= 0 && label < Label(classes);
        float log_sum = log_sum_exp(x, classes, lane);
        float all = 0.0f;
        if (smoothing > 0.0f) {
            for (Index k = lane; k < classes; k += WARP) {
                all += log_sum - x[k];
            }
            all = warp_join<Sum>(all);
        }
        if (lane == 0) {
            if (valid) {
                loss[row] =
                    ((1.0f - smoothing) * (log_sum - x[label]) + smoothing / classes * all) / rows;
            } else {
                loss[row] = 0.0f;
                report_label(error, node, classes, label);
            }
        }
    }
}

// dy/batch · (p − (1 − s)·onehot(label) − s/classes).
KERNEL cross_entropy_gradient(const float* logits, const Label* labels, const float* dy, float* dx,
                              Index rows, Index classes, float smoothing, unsigned int node,
                              ErrorWord* error) {
    Index lane = threadIdx.x % WARP;
    float scale = dy[0] / rows;
    for (Index row = first_index() / WARP; row < rows; row += index_step() / WARP) {
        const float* x = logits + row * classes;
        Label label = labels[row];
        if (lane == 0 && !(label >= 0 && label < Label(classes))) {
            report_label(error, node, classes, label);
        }
        float log_sum = log_sum_exp(x, classes, lane);
        for (Index k = lane; k < classes; k += WARP) {
            float hit = Label(k) == label ? 1.0f - smoothing : 0.0f;
            dx[row * classes + k] = scale * (expf(x[k] - log_sum) - hit - smoothing / classes);
        }
    }
}
