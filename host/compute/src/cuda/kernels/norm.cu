// Batch normalisation (Ioffe and Szegedy 2015). A statistics tensor is [3, channels]: mean,
// 1/√(variance + ε), biased variance. x is [batch, channels, plane].
#include "device.cuh"

// The element `i` of a channel.
__device__ inline Index channel_at(Index channel, Index i, Index channels, Index plane) {
    Index sample = i / plane;
    return (sample * channels + channel) * plane + (i - sample * plane);
}

// Of a part of a channel, so many elements long: Σ (x − shift) and Σ (x − shift)², where the shift is
// the channel's first element, so that little cancels. parts is [splits, 2, channels]; blockIdx.y counts
// splits.
KERNEL batch_moments(const float* x, double* parts, Index batch, Index channels, Index plane,
                     Index share) {
    __shared__ double shared[BLOCK / WARP];
    Index first = blockIdx.y * share, count = batch * plane;
    Index last = first + share < count ? first + share : count;
    double* out = parts + blockIdx.y * 2 * channels;
    for (Index channel = blockIdx.x; channel < channels; channel += gridDim.x) {
        double shift = x[channel * plane], sum = 0.0, squares = 0.0;
#pragma unroll 4
        for (Index i = first + threadIdx.x; i < last; i += BLOCK) {
            double d = x[channel_at(channel, i, channels, plane)] - shift;
            sum += d;
            squares += d * d;
        }
        sum = block_join<ExactSum>(sum, shared);
        squares = block_join<ExactSum>(squares, shared);
        if (threadIdx.x == 0) {
            out[channel] = sum;
            out[channels + channel] = squares;
        }
    }
}

// Σ of a channel's first or second number over all parts.
__device__ inline double total(const double* parts, Index which, Index channel, Index channels,
                               Index splits, double* shared) {
    double sum = 0.0;
    for (Index split = threadIdx.x; split < splits; split += BLOCK) {
        sum += parts[(split * 2 + which) * channels + channel];
    }
    return block_join<ExactSum>(sum, shared);
}

// Statistics of the moments of all parts. A block a channel.
KERNEL batch_statistics(const float* x, const double* parts, float* out, float epsilon,
                        Index batch, Index channels, Index plane, Index splits) {
    __shared__ double shared[BLOCK / WARP];
    double count = double(batch) * plane;
    for (Index channel = blockIdx.x; channel < channels; channel += gridDim.x) {
        double sum = total(parts, 0, channel, channels, splits, shared);
        double squares = total(parts, 1, channel, channels, splits, shared);
        if (threadIdx.x == 0) {
            double variance = (squares - sum * sum / count) / count;
            variance = variance > 0.0 || variance != variance ? variance : 0.0;
            out[channel] = float(x[channel * plane] + sum / count);
            out[channels + channel] = float(1.0 / sqrt(variance + epsilon));
            out[2 * channels + channel] = float(variance);
        }
    }
}

KERNEL fixed_statistics(const float* mean, const float* variance, float* out, float epsilon,
                        Index channels) {
    for (Index c = first_index(); c < channels; c += index_step()) {
        out[c] = mean[c];
        out[channels + c] = 1.0f / sqrtf(variance[c] + epsilon);
        out[2 * channels + c] = variance[c];
    }
}

// out [2, channels]: what x is multiplied by, and what is added.
KERNEL batch_norm_coefficients(const float* scale, const float* bias, const float* statistics,
                               float* out, Index channels) {
    for (Index c = first_index(); c < channels; c += index_step()) {
        float factor = statistics[channels + c] * scale[c];
        out[c] = factor;
        out[channels + c] = bias[c] - statistics[c] * factor;
    }
}

// (x − mean)·r·scale + bias.
KERNEL batch_norm(const float* x, const float* scale, const float* bias, const float* statistics,
                  float* y, Index n, Index channels, Index plane) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index c = i / plane % channels;
        float factor = statistics[channels + c] * scale[c];
        y[i] = factor * (x[i] - statistics[c]) + bias[c];
    }
}

// Of a part of a channel: Σ (x − mean)·dy and Σ dy, where parts and splits are as above.
KERNEL batch_norm_products(const float* x, const float* dy, const float* statistics,
                           double* parts, Index batch, Index channels, Index plane, Index share) {
    __shared__ double shared[BLOCK / WARP];
    Index first = blockIdx.y * share, count = batch * plane;
    Index last = first + share < count ? first + share : count;
    double* out = parts + blockIdx.y * 2 * channels;
    for (Index channel = blockIdx.x; channel < channels; channel += gridDim.x) {
        double mean = statistics[channel], hits = 0.0, sum = 0.0;
#pragma unroll 4
        for (Index i = first + threadIdx.x; i < last; i += BLOCK) {
            Index at = channel_at(channel, i, channels, plane);
            hits += (x[at] - mean) * dy[at];
            sum += dy[at];
        }
        hits = block_join<ExactSum>(hits, shared);
        sum = block_join<ExactSum>(sum, shared);
        if (threadIdx.x == 0) {
            out[channel] = hits;
            out[channels + channel] = sum;
        }
    }
}

// out [2, channels]: Σ dy·x̂ and Σ dy. A block a channel.
KERNEL batch_norm_parameter_gradient(const double* parts, const float* statistics, float* out,
                                     Index channels, Index splits) {
    __shared__ double shared[BLOCK / WARP];
    for (Index channel = blockIdx.x; channel < channels; channel += gridDim.x) {
        double hits = total(parts, 0, channel, channels, splits, shared);
        double sum = total(parts, 1, channel, channels, splits, shared);
        if (threadIdx.x == 0) {
            out[channel] = float(hits * statistics[channels + channel]);
            out[channels + channel] = float(sum);
        }
    }
}

// scale·r·(dy − (dbias + x̂·dscale)/count).
KERNEL batch_norm_train_gradient(const float* dy, const float* scale, const float* statistics,
                                 const float* x, const float* parameters, float* dx, Index n,
                                 Index channels, Index plane) {
    float count = float(n / channels);
    for (Index i = first_index(); i < n; i += index_step()) {
        Index c = i / plane % channels;
        float r = statistics[channels + c];
        float hat = (x[i] - statistics[c]) * r;
        dx[i] = scale[c] * r *
                (dy[i] - (parameters[channels + c] + hat * parameters[c]) / count);
    }
}

KERNEL batch_norm_eval_gradient(const float* dy, const float* scale, const float* statistics,
                                float* dx, Index n, Index channels, Index plane) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index c = i / plane % channels;
        dx[i] = scale[c] * statistics[channels + c] * dy[i];
    }
}

// Moves the running values towards the batch's; the variance is unbiased by n/(n − 1).
KERNEL update_running(float* mean, float* variance, const float* statistics, float momentum,
                      float unbiased, Index channels) {
    for (Index c = first_index(); c < channels; c += index_step()) {
        mean[c] = (1.0f - momentum) * mean[c] + momentum * statistics[c];
        variance[c] =
            (1.0f - momentum) * variance[c] + momentum * unbiased * statistics[2 * channels + c];
    }
}
