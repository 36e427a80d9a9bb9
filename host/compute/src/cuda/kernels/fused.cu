// Element-wise programs: several element-wise operators in one pass through memory. Every thread
// interprets the program, which all threads read at the same place at once.
#include "elementwise.cuh"

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

KERNEL fused(Program program, void* out, Index n) {
    float registers[MAX_SOURCES + MAX_INSTRUCTIONS];
    for (Index i = first_index(); i < n; i += index_step()) {
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
        if (program.truth) {
            ((unsigned char*)out)[i] = result != 0.0f;
        } else {
            ((float*)out)[i] = result;
        }
    }
}
