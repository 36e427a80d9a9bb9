// Normalisation of rows [rows, size]: a warp has a row.
#include "device.cuh"

struct Statistics {
    float mean, reciprocal;
};

// Mean (0 where it is not taken off) and 1/sqrt(variance + epsilon) of a row.
__device__ inline Statistics statistics(const float* x, Index size, int centre, float epsilon,
                                        Index lane) {
    double sum = 0.0, mean = 0.0;
    if (centre) {
        for (Index k = lane; k < size; k += WARP) {
            sum += x[k];
        }
        mean = warp_join<ExactSum>(sum) / size;
        sum = 0.0;
    }
    for (Index k = lane; k < size; k += WARP) {
        sum += (x[k] - mean) * (x[k] - mean);
    }
    double variance = warp_join<ExactSum>(sum) / size;
    Statistics result = {float(mean), float(1.0 / sqrt(variance + double(epsilon)))};
    return result;
}

// `scale` and `bias` [size] may be missing.
KERNEL layer_norm(const float* x, const float* scale, const float* bias, float* y, int centre,
                  float epsilon, Index rows, Index size) {
    Index lane = threadIdx.x % WARP;
    for (Index row = first_index() / WARP; row < rows; row += index_step() / WARP) {
        const float* from = x + row * size;
        float* to = y + row * size;
        Statistics s = statistics(from, size, centre, epsilon, lane);
        for (Index k = lane; k < size; k += WARP) {
            float normal = (from[k] - s.mean) * s.reciprocal;
            to[k] = (scale ? normal * scale[k] : normal) + (bias ? bias[k] : 0.0f);
        }
    }
}

// With n = (x - mean)·r and g = scale·dy: r·(g - mean(g) - n·mean(g·n)).
KERNEL layer_norm_gradient(const float* x, const float* dy, const float* scale, float* dx,
                           int centre, float epsilon, Index rows, Index size) {
    Index lane = threadIdx.x % WARP;
    for (Index row = first_index() / WARP; row < rows; row += index_step() / WARP) {
        const float* from = x + row * size;
        const float* d = dy + row * size;
        float* to = dx + row * size;
        Statistics s = statistics(from, size, centre, epsilon, lane);
        double all = 0.0, along = 0.0;
        for (Index k = lane; k < size; k += WARP) {
            float g = scale ? d[k] * scale[k] : d[k];
            all += g;
            along += double(g) * double((from[k] - s.mean) * s.reciprocal);
        }
        float mean_all = centre ? float(warp_join<ExactSum>(all) / size) : 0.0f;
        float mean_along = float(warp_join<ExactSum>(along) / size);
        for (Index k = lane; k < size; k += WARP) {
            float g = scale ? d[k] * scale[k] : d[k];
            float normal = (from[k] - s.mean) * s.reciprocal;
            to[k] = s.reciprocal * (g - mean_all - normal * mean_along);
        }
    }
}

// Rows of one block of `layer_norm_parameter_gradient`.
#define PART_ROWS 64

// parts [blocks, 2, size]: sums of dy·n and of dy over the rows of each block.
KERNEL layer_norm_parameter_gradient(const float* x, const float* dy, float* parts, int centre,
                                     float epsilon, Index rows, Index size) {
    __shared__ Statistics of[PART_ROWS];
    Index lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    Index first = blockIdx.x * PART_ROWS;
    Index count = rows - first < PART_ROWS ? rows - first : PART_ROWS;
    for (Index row = warp; row < count; row += BLOCK / WARP) {
        Statistics s = statistics(x + (first + row) * size, size, centre, epsilon, lane);
        if (lane == 0) {
            of[row] = s;
        }
    }
    __syncthreads();
    float* to = parts + blockIdx.x * 2 * size;
    for (Index k = threadIdx.x; k < size; k += BLOCK) {
        float scale = 0.0f, bias = 0.0f;
        for (Index row = 0; row < count; row++) {
            Index at = (first + row) * size + k;
            scale += dy[at] * ((x[at] - of[row].mean) * of[row].reciprocal);
            bias += dy[at];
        }
        to[k] = scale;
        to[size + k] = bias;
    }
}
