// Element-wise operators.
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

// Results start at multiples of 16 bytes, so that four elements move at once.
KERNEL unary(int kind, float a, float b, const float* x, float* y, Index n) {
    for (Index i = first_index(); i < n / 4; i += index_step()) {
        float4 v = reinterpret_cast<const float4*>(x)[i];
        v.x = apply(kind, a, b, v.x);
        v.y = apply(kind, a, b, v.y);
        v.z = apply(kind, a, b, v.z);
        v.w = apply(kind, a, b, v.w);
        reinterpret_cast<float4*>(y)[i] = v;
    }
    for (Index i = n / 4 * 4 + first_index(); i < n; i += index_step()) {
        y[i] = apply(kind, a, b, x[i]);
    }
}

KERNEL unary_gradient(int kind, float a, float b, const float* x, const float* dy, float* dx,
                      Index n) {
    for (Index i = first_index(); i < n / 4; i += index_step()) {
        float4 v = reinterpret_cast<const float4*>(x)[i];
        float4 d = reinterpret_cast<const float4*>(dy)[i];
        v.x = apply_gradient(kind, a, b, v.x, d.x);
        v.y = apply_gradient(kind, a, b, v.y, d.y);
        v.z = apply_gradient(kind, a, b, v.z, d.z);
        v.w = apply_gradient(kind, a, b, v.w, d.w);
        reinterpret_cast<float4*>(dx)[i] = v;
    }
    for (Index i = n / 4 * 4 + first_index(); i < n; i += index_step()) {
        dx[i] = apply_gradient(kind, a, b, x[i], dy[i]);
    }
}

// Both operands of the result's shape.
KERNEL binary(int kind, const float* a, const float* b, float* y, Index n) {
    for (Index i = first_index(); i < n / 4; i += index_step()) {
        float4 v = reinterpret_cast<const float4*>(a)[i];
        float4 w = reinterpret_cast<const float4*>(b)[i];
        v.x = combine(kind, v.x, w.x);
        v.y = combine(kind, v.y, w.y);
        v.z = combine(kind, v.z, w.z);
        v.w = combine(kind, v.w, w.w);
        reinterpret_cast<float4*>(y)[i] = v;
    }
    for (Index i = n / 4 * 4 + first_index(); i < n; i += index_step()) {
        y[i] = combine(kind, a[i], b[i]);
    }
}

KERNEL binary_broadcast(int kind, const float* a, const float* b, float* y, Pair layout, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index at, bt;
        offsets_of(layout, i, at, bt);
        y[i] = combine(kind, a[at], b[bt]);
    }
}

// dy where a wins over b, half of it where they are equal.
KERNEL extremum_gradient(int maximum, const float* a, const float* b, const float* dy, float* y,
                         Pair layout, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index at, bt;
        offsets_of(layout, i, at, bt);
        float share = a[at] == b[bt] ? 0.5f : (a[at] > b[bt]) == (maximum != 0) ? 1.0f : 0.0f;
        y[i] = dy[i] * share;
    }
}

// Integers wrap around; a quotient goes towards zero, and is 0 where the divisor is.
KERNEL integer_binary(int kind, const Label* a, const Label* b, Label* y, Pair layout, Index n) {
    typedef unsigned long long Bits;
    for (Index i = first_index(); i < n; i += index_step()) {
        Index at, bt;
        offsets_of(layout, i, at, bt);
        Label v = a[at], w = b[bt];
        switch (kind) {
            case ADD: y[i] = Label(Bits(v) + Bits(w)); break;
            case SUB: y[i] = Label(Bits(v) - Bits(w)); break;
            case MUL: y[i] = Label(Bits(v) * Bits(w)); break;
            // -1 apart, as the least number has no opposite.
            case DIV: y[i] = w == 0 ? 0 : w == -1 ? Label(0 - Bits(v)) : v / w; break;
            case MAXIMUM: y[i] = v > w ? v : w; break;
            default: y[i] = v < w ? v : w;
        }
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

KERNEL compare(int kind, int type, const void* a, const void* b, unsigned char* y, Pair layout,
               Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index at, bt;
        offsets_of(layout, i, at, bt);
        switch (type) {
            case F32: y[i] = holds(kind, ((const float*)a)[at], ((const float*)b)[bt]); break;
            case I64: y[i] = holds(kind, ((const Label*)a)[at], ((const Label*)b)[bt]); break;
            default:
                y[i] = holds(kind, ((const unsigned char*)a)[at], ((const unsigned char*)b)[bt]);
        }
    }
}

KERNEL logic(int kind, const unsigned char* a, const unsigned char* b, unsigned char* y,
             Pair layout, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index at, bt;
        offsets_of(layout, i, at, bt);
        y[i] = kind == AND ? a[at] & b[bt] : a[at] | b[bt];
    }
}

template <class T>
__device__ inline void select_strided(const unsigned char* condition, const T* a, const T* b, T* y,
                                      const Strided& shown, const Pair& layout, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        Index at, bt;
        offsets_of(layout, i, at, bt);
        y[i] = condition[offset_of(shown, i)] ? a[at] : b[bt];
    }
}

KERNEL select_1(const unsigned char* condition, const unsigned char* a, const unsigned char* b,
                unsigned char* y, Strided shown, Pair layout, Index n) {
    select_strided(condition, a, b, y, shown, layout, n);
}

KERNEL select_4(const unsigned char* condition, const float* a, const float* b, float* y,
                Strided shown, Pair layout, Index n) {
    select_strided(condition, a, b, y, shown, layout, n);
}

KERNEL select_8(const unsigned char* condition, const Label* a, const Label* b, Label* y,
                Strided shown, Pair layout, Index n) {
    select_strided(condition, a, b, y, shown, layout, n);
}

// Towards zero, as in PyTorch; what does not fit is clamped, NaN is 0.
__device__ inline Label to_label(float x) {
    if (x != x) {
        return 0;
    }
    if (x >= 9223372036854775808.0f) {
        return 9223372036854775807ll;
    }
    if (x <= -9223372036854775808.0f) {
        return -9223372036854775807ll - 1;
    }
    return Label(x);
}

KERNEL cast(int from, int to, const void* x, void* y, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        if (from == F32) {
            float v = ((const float*)x)[i];
            if (to == F32) ((float*)y)[i] = v;
            else if (to == I64) ((Label*)y)[i] = to_label(v);
            else ((unsigned char*)y)[i] = v != 0.0f;
        } else {
            Label v = from == I64 ? ((const Label*)x)[i] : ((const unsigned char*)x)[i];
            if (to == F32) ((float*)y)[i] = from == BOOL ? float(v != 0) : float(v);
            else if (to == I64) ((Label*)y)[i] = from == BOOL ? Label(v != 0) : v;
            else ((unsigned char*)y)[i] = v != 0;
        }
    }
}
