// Weighted sums of neighbours along an axis.
#include "device.cuh"

// y [outer, results, inner] of x [outer, size, inner]: result i is the sum of x from first[i] on,
// weighted by weights [results, taps].
KERNEL resample(const float* x, const Label* first, const float* weights, float* y, Index size,
                Index inner, Index results, Index taps, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index row = i / inner, outer = row / results, result = row - outer * results;
        const float* from = x + (outer * size + Index(first[result])) * inner + i % inner;
        float sum = 0.0f;
        for (Index k = 0; k < taps; k++) {
            sum += weights[result * taps + k] * from[k * inner];
        }
        y[i] = sum;
    }
}
