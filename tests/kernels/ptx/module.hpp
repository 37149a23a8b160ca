// PTX as nvcc emits it, parsed into what an interpreter steps through.
//
// Syntax and meaning: NVIDIA, Parallel Thread Execution ISA. What is not understood is an error, never skipped.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

[[noreturn]] void fail(const std::string& message);

struct Type {
    enum Kind : uint8_t { NONE, BITS, UNSIGNED, SIGNED, FLOAT, BF16, BF16X2, PREDICATE };
    Kind kind = NONE;
    uint8_t bytes = 0;
};

struct Operand {
    enum Kind : uint8_t {
        REGISTER,
        IMMEDIATE,  // an integer, or the bits of a float; an f32 literal is marked by `is_float`
        SPECIAL,
        SHARED_SYMBOL,
        PARAMETER,
        VECTOR,
        LABEL,
        NOTHING,  // "_"
    };
    Kind kind = NOTHING;
    bool memory = false;      // in brackets: value + offset is an address
    uint32_t index = 0;       // of a register, special register, parameter offset, or instruction
    uint32_t predicate = ~0u; // of d|p
    uint64_t value = 0;
    int64_t offset = 0;
    std::vector<Operand> parts;
};

enum class Op : uint8_t {
    ABS, ADD, AND, ATOM, BAR, BFE, BFI, BRA, BREV, CLZ, COPYSIGN, COS, CP_ASYNC, CP_ASYNC_COMMIT, CP_ASYNC_WAIT, CVT, CVTA, DIV, EX2,
    FENCE, FMA, LD, LDMATRIX, LG2, LOP3, MAD, MAX, MIN, MMA, MOV, MUL, NEG, NOT, OR, POPC, PRMT, RCP, REM, RET, RSQRT,
    SELP, SETP, SHF, SHFL, SHL, SHR, SIN, SQRT, ST, SUB, TANH, VOTE, WARP_SYNC, XOR,
};

enum class Space : uint8_t { GENERIC, GLOBAL, SHARED, PARAM };

struct Instruction {
    Op op;
    Type type;                           // the last type suffix
    Type from;                           // cvt: the source's; else as `type`
    Space space = Space::GENERIC;
    uint32_t guard = ~0u;                // predicate register
    bool guard_negated = false;
    std::vector<std::string> modifiers;  // as written, without types
    std::string text;
    std::vector<Operand> operands;
    // Modifiers that are asked for at every step.
    bool lo = false, hi = false, wide = false, trans = false, flush = false, saturate = false, to = false, all = false, down = false;
    uint8_t choice = 0;                  // comparison, shuffle mode, atomic operation, rounding
    uint8_t width = 1;                   // elements of a vector access, or matrices
};

struct Parameter {
    std::string name;
    uint32_t bytes, offset;
};

struct Kernel {
    std::string name;
    std::vector<Parameter> parameters;
    std::vector<Instruction> code;
    uint32_t registers = 0;
    uint32_t static_shared = 0;
    uint32_t maximum_threads = 0;
};

struct Module {
    std::map<std::string, Kernel> kernels;
    uint32_t target = 0;  // 80 of ".target sm_80"
    static Module load(const std::string& path);
    static Module parse(const std::string& text);
};

enum Comparison : uint8_t { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
enum Shuffle : uint8_t { UP, DOWN, BUTTERFLY, INDEX };
enum Atomic : uint8_t { ATOMIC_ADD, ATOMIC_MIN, ATOMIC_MAX, ATOMIC_OR, ATOMIC_EXCHANGE };
enum Rounding : uint8_t { EXACT, NEAREST, ZERO, DOWN_, UP_, NEAREST_INTEGER, ZERO_INTEGER, FLOOR_INTEGER, CEIL_INTEGER };
enum SpecialRegister : uint32_t { TID_X, TID_Y, TID_Z, NTID_X, NTID_Y, NTID_Z, CTAID_X, CTAID_Y, CTAID_Z,
                                  NCTAID_X, NCTAID_Y, NCTAID_Z, LANE, WARP };

}  // namespace ptx
