// Element-wise functions of one element.
#pragma once

#include "device.cuh"

// In the order of the host's `Unary`.
enum Unary {
    AFFINE, ABS, EXP, LOG, SQRT, RSQRT, SIN, COS, ERF, POW, CLAMP, RELU, LEAKY_RELU, GELU,
    GELU_TANH, SILU, SIGMOID, TANH, ELU, SOFTPLUS, HARD_SIGMOID, HARD_SWISH, SIGN, FLOOR, CEIL,
    ROUND, TAN, ASIN, ACOS, ATAN, SINH, COSH, ASINH, ACOSH, ATANH
};
enum Binary { ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM };
enum Comparison { EQUAL, NOT_EQUAL, LESS, LESS_OR_EQUAL, GREATER, GREATER_OR_EQUAL };
enum Logic { AND, OR };
enum Type { F32, I64, BOOL, U8 };

#define FRAC_1_SQRT_2 0.70710678118654752f
#define FRAC_2_SQRT_PI 1.12837916709551257f
#define TANH_SCALE (FRAC_2_SQRT_PI * FRAC_1_SQRT_2)

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float hard_sigmoid(float x) {
    float y = x / 6.0f + 0.5f;
    return y < 0.0f ? 0.0f : y > 1.0f ? 1.0f : y;
}

// NaN stays.
__device__ inline float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x * 0.0f; }

// f(x); `a` and `b` are the function's constants.
__device__ inline float apply(int kind, float a, float b, float x) {
    switch (kind) {
        case AFFINE: return a * x + b;
        case ABS: return fabsf(x);
        case EXP: return expf(x);
        case LOG: return logf(x);
        case SQRT: return sqrtf(x);
        case RSQRT: return 1.0f / sqrtf(x);
        case SIN: return sinf(x);
        case COS: return cosf(x);
        case ERF: return erff(x);
        case POW: return powf(x, a);
        case CLAMP: return x < a ? a : x > b ? b : x;
        case RELU: return x < 0.0f ? 0.0f : x;
        case LEAKY_RELU: return x < 0.0f ? a * x : x;
        case GELU: return 0.5f * x * (1.0f + erff(x * FRAC_1_SQRT_2));
        case GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(TANH_SCALE * (x + 0.044715f * x * x * x)));
        case SILU: return x * sigmoid(x);
        case SIGMOID: return sigmoid(x);
        case TANH: return tanhf(x);
        case ELU: return x < 0.0f ? a * expm1f(x) : x;
        // max(x, 0) + log(1 + e^-|x|), which does not overflow.
        case SOFTPLUS: return (x < 0.0f ? 0.0f : x) + log1pf(expf(-fabsf(x)));
        case HARD_SIGMOID: return hard_sigmoid(x);
        case HARD_SWISH: return x * hard_sigmoid(x);
        case SIGN: return sign(x);
        case FLOOR: return floorf(x);
        case CEIL: return ceilf(x);
        case ROUND: return rintf(x);
        case TAN: return tanf(x);
        case ASIN: return asinf(x);
        case ACOS: return acosf(x);
        case ATAN: return atanf(x);
        case SINH: return sinhf(x);
        case COSH: return coshf(x);
        case ASINH: return asinhf(x);
        case ACOSH: return acoshf(x);
        default: return atanhf(x);
    }
}

// dy · f'(x).
__device__ inline float apply_gradient(int kind, float a, float b, float x, float dy) {
    switch (kind) {
        case AFFINE: return dy * a;
        case ABS: return dy * sign(x);
        case EXP: return dy * expf(x);
        case LOG: return dy / x;
        case SQRT: return dy * (0.5f / sqrtf(x));
        case RSQRT: return dy * (-0.5f / (x * sqrtf(x)));
        case SIN: return dy * cosf(x);
        case COS: return -dy * sinf(x);
        case ERF: return dy * (FRAC_2_SQRT_PI * expf(-x * x));
        case POW: return dy * (a * powf(x, a - 1.0f));
        case CLAMP: return x < a || x > b ? dy * 0.0f : dy;
        case RELU: return x > 0.0f ? dy : 0.0f;
        case LEAKY_RELU: return x > 0.0f ? dy : a * dy;
        case GELU: {
            float density = 0.5f * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * expf(-0.5f * x * x);
            return dy * (0.5f * (1.0f + erff(x * FRAC_1_SQRT_2)) + x * density);
        }
        case GELU_TANH: {
            float t = tanhf(TANH_SCALE * (x + 0.044715f * x * x * x));
            float slope = TANH_SCALE * (1.0f + 3.0f * 0.044715f * x * x);
            return dy * (0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope);
        }
        case SILU: {
            float s = sigmoid(x);
            return dy * (s * (1.0f + x * (1.0f - s)));
        }
        case SIGMOID: {
            float s = sigmoid(x);
            return dy * (s * (1.0f - s));
        }
        case TANH: {
            float t = tanhf(x);
            return dy * (1.0f - t * t);
        }
        case ELU: return x > 0.0f ? dy : dy * (a * expf(x));
        case SOFTPLUS: return dy * sigmoid(x);
        case HARD_SIGMOID: return fabsf(x) < 3.0f ? dy * (1.0f / 6.0f) : dy * 0.0f;
        case HARD_SWISH: return dy * (x <= -3.0f ? 0.0f : x < 3.0f ? x / 3.0f + 0.5f : 1.0f);
        case SIGN: case FLOOR: case CEIL: case ROUND: return 0.0f;
        case TAN: {
            float t = tanf(x);
            return dy * (1.0f + t * t);
        }
        case ASIN: return dy / sqrtf(1.0f - x * x);
        case ACOS: return -dy / sqrtf(1.0f - x * x);
        case ATAN: return dy / (1.0f + x * x);
        case SINH: return dy * coshf(x);
        case COSH: return dy * sinhf(x);
        case ASINH: return dy / sqrtf(1.0f + x * x);
        case ACOSH: return dy / sqrtf(x * x - 1.0f);
        default: return dy / (1.0f - x * x);
    }
}

__device__ inline float combine(int kind, float a, float b) {
    switch (kind) {
        case ADD: return a + b;
        case SUB: return a - b;
        case MUL: return a * b;
        case DIV: return a / b;
        case MAXIMUM: return a > b || a != a ? a : b;
        default: return a < b || a != a ? a : b;
    }
}

template <class T>
__device__ inline bool holds(int kind, T a, T b) {
    switch (kind) {
        case EQUAL: return a == b;
        case NOT_EQUAL: return a != b;
        case LESS: return a < b;
        case LESS_OR_EQUAL: return a <= b;
        case GREATER: return a > b;
        default: return a >= b;
    }
}
