// Element-wise programs: several element-wise operators in one pass through memory, or within the
// reduction of what they give. Every thread interprets the program, which all threads read at the same
// place at once.
#include "elementwise.cuh"
#include "reduce.cuh"

#define MAX_SOURCES 8
#define MAX_INSTRUCTIONS 16

// In the order of the host's `Class`.
enum Class { UNARY, UNARY_GRADIENT, BINARY, EXTREMUM_GRADIENT, COMPARE, LOGIC, SELECT, TRUTH };

// A tensor that is read; `same` where its elements lie as the result's do, which may then be where
// it is itself.
struct Source {
    const void* address;
    Index bytes;
    Index same;
    Strided layout;
    Index unused;
};

// `operands` are numbers of sources, or of instructions plus the number of sources.
struct Instruction {
    int instruction;
    int kind;
    float a;
    float b;
    Index operands[3];
    Index unused;
};

struct Program {
    Index sources;
    Index instructions;
    // Whether the result is boolean.
    Index truth;
    Index unused;
    Source source[MAX_SOURCES];
    Instruction instruction[MAX_INSTRUCTIONS];
};

__device__ inline float load(const Source& source, Index i) {
    Index at = source.same ? i : offset_of(source.layout, i);
    return source.bytes ? float(((const unsigned char*)source.address)[at])
                        : ((const float*)source.address)[at];
}

__device__ inline float perform(const Instruction& step, float x, float y, float z) {
    switch (step.instruction) {
        case UNARY: return apply(step.kind, step.a, step.b, x);
        case UNARY_GRADIENT: return apply_gradient(step.kind, step.a, step.b, x, y);
        case BINARY: return combine(step.kind, x, y);
        case EXTREMUM_GRADIENT: return z * (x == y ? 0.5f : (x > y) == (step.kind != 0) ? 1.0f : 0.0f);
        case COMPARE: return holds(step.kind, x, y) ? 1.0f : 0.0f;
        case LOGIC: {
            bool a = x != 0.0f, b = y != 0.0f;
            return (step.kind == AND ? a && b : a || b) ? 1.0f : 0.0f;
        }
        case SELECT: return x != 0.0f ? y : z;
        default: return x != 0.0f ? 1.0f : 0.0f;
    }
}

// The element of a program's result that has number `i`.
__device__ inline float compute(const Program& program, Index i) {
    float registers[MAX_SOURCES + MAX_INSTRUCTIONS];
    for (Index k = 0; k < program.sources; k++) {
        registers[k] = load(program.source[k], i);
    }
    float result = 0.0f;
    for (Index k = 0; k < program.instructions; k++) {
        const Instruction& step = program.instruction[k];
        result = perform(step, registers[step.operands[0]], registers[step.operands[1]],
                         registers[step.operands[2]]);
        registers[program.sources + k] = result;
    }
    return result;
}

KERNEL fused(Program program, void* out, Index n) {
    for (Index i = first_index(); i < n; i += index_step()) {
        float result = compute(program, i);
        if (program.truth) {
            ((unsigned char*)out)[i] = result != 0.0f;
        } else {
            ((float*)out)[i] = result;
        }
    }
}

__device__ inline double join(int kind, double a, double b) {
    switch (kind) {
        case SUM: return a + b;
        // NaN wins.
        case MAX: return a > b || a != a ? a : b;
        default: return a < b || a != a ? a : b;
    }
}

// The reduction of a program's result, which is not stored; `kept` and `reduced` are as it would lie.
// A block reduces `columns` results, 1 or 32, each by BLOCK / columns threads.
KERNEL fused_reduce(Program program, int kind, float* out, Strided kept, Strided reduced,
                    Index results, Index count, Index splits, Index columns) {
    __shared__ double shared[BLOCK];
    Index column = threadIdx.x % columns, line = threadIdx.x / columns, lines = BLOCK / columns;
    Index first = blockIdx.y * share(count, splits);
    Index last = first + share(count, splits);
    last = last < count ? last : count;
    for (Index start = blockIdx.x * columns; start < results; start += gridDim.x * columns) {
        Index result = start + column;
        double total = kind == SUM ? 0.0 : kind == MAX ? -INFINITY : INFINITY;
        if (result < results) {
            Index from = offset_of(kept, result);
            for (Index i = first + line; i < last; i += lines) {
                total = join(kind, total, compute(program, from + offset_of(reduced, i)));
            }
        }
        shared[threadIdx.x] = total;
        __syncthreads();
        for (Index half = lines / 2; half > 0; half /= 2) {
            if (line < half) {
                shared[threadIdx.x] = join(kind, shared[threadIdx.x],
                                           shared[threadIdx.x + half * columns]);
            }
            __syncthreads();
        }
        if (line == 0 && result < results) {
            out[blockIdx.y * results + result] = float(shared[threadIdx.x]);
        }
        __syncthreads();
    }
}
