// Optimizer steps, in place, for many parameters in one launch. blockIdx.y is a parameter, the
// blocks along x share its elements.
#include "device.cuh"

struct Target {
    float* parameter;
    const float* gradient;
    // Momentum, or first and second moment; null where the rule keeps none.
    float* first;
    float* second;
    Index elements;
    Index unused;
};

// What changes from step to step, computed by the host in float64 and uploaded with the batch:
// SGD: [rate]; average: [decay]; Adam: [rate/(1 − β₁ᵗ), √(1 − β₂ᵗ), factor of the parameter by decoupled decay].
KERNEL sgd(const Target* targets, const float* step, float momentum, float decay, int nesterov) {
    Target t = targets[blockIdx.y];
    float rate = step[0];
    for (Index i = first_index(); i < t.elements; i += index_step()) {
        float g = t.gradient[i] + decay * t.parameter[i];
        if (t.first) {
            float v = momentum * t.first[i] + g;
            t.first[i] = v;
            g = nesterov ? g + momentum * v : v;
        }
        t.parameter[i] -= rate * g;
    }
}

KERNEL adam(const Target* targets, const float* step, float beta1, float beta2, float new1,
            float new2, float epsilon, float decay) {
    Target t = targets[blockIdx.y];
    float size = step[0], root = step[1], shrink = step[2];
    for (Index i = first_index(); i < t.elements; i += index_step()) {
        float p = t.parameter[i];
        float g = t.gradient[i] + decay * p;
        float m = beta1 * t.first[i] + new1 * g;
        float v = beta2 * t.second[i] + new2 * g * g;
        t.first[i] = m;
        t.second[i] = v;
        t.parameter[i] = p * shrink - size * m / (sqrtf(v) / root + epsilon);
    }
}

// A buffer follows a parameter, which stands where others have the gradient.
KERNEL average(const Target* targets, const float* step) {
    Target t = targets[blockIdx.y];
    float decay = step[0];
    for (Index i = first_index(); i < t.elements; i += index_step()) {
        t.parameter[i] = decay * t.parameter[i] + (1.0f - decay) * t.gradient[i];
    }
}
