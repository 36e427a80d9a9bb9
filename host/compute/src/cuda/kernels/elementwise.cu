// Element-wise operators.
#include "elementwise.cuh"

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
