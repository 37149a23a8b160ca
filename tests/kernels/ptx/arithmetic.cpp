// Instructions from registers to a register.

#include <cmath>

#include "machine.hpp"

namespace ptx {

namespace {

template <typename T>
T as(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <typename T>
uint64_t bits_of(T value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

uint64_t mask(unsigned bytes) { return ~uint64_t{0} >> (64 - 8 * bytes); }

int64_t extended(uint64_t bits, unsigned bytes) {
    const unsigned shift = 64 - 8 * bytes;
    return static_cast<int64_t>(bits << shift) >> shift;
}

template <typename T>
bool compare(uint8_t how, T a, T b) {
    switch (how) {
        case EQ: return a == b;
        case NE: return a < b || a > b;  // of numbers: false with a NaN
        case LT: return a < b;
        case LE: return a <= b;
        case GT: return a > b;
        case GE: return a >= b;
        case EQU: return !(a < b || a > b);
        case NEU: return !(a == b);
        case LTU: return !(a >= b);
        case LEU: return !(a > b);
        case GTU: return !(a <= b);
        case GEU: return !(a < b);
        case NUM: return a == a && b == b;
        default: return a != a || b != b;
    }
}

// a b + c, rounded towards minus infinity. The product is exact in f64, and so is the error of the sum.
float fused_down(float a, float b, float c) {
    const double product = static_cast<double>(a) * b, sum = product + c;
    if (!std::isfinite(sum)) return static_cast<float>(sum);
    const double back = sum - product, error = (product - (sum - back)) + (c - back);
    const float nearest = static_cast<float>(sum);
    const bool above = nearest > sum || (nearest == sum && error < 0.0);
    return above ? std::nextafterf(nearest, -INFINITY) : nearest;
}

template <typename T>
T of_floats(const Instruction& instruction, T a, T b, T c) {
    if (instruction.down) return fused_down(static_cast<float>(a), static_cast<float>(b), static_cast<float>(c));
    switch (instruction.op) {
        case Op::ADD: return a + b;
        case Op::SUB: return a - b;
        case Op::MUL: return a * b;
        case Op::DIV: return a / b;
        case Op::FMA: case Op::MAD: return std::fma(a, b, c);
        case Op::COPYSIGN: return std::copysign(b, a);  // the sign of a
        case Op::MAX: return std::fmax(a, b);
        case Op::MIN: return std::fmin(a, b);
        case Op::NEG: return -a;
        case Op::ABS: return std::fabs(a);
        case Op::EX2: return std::exp2(a);
        case Op::LG2: return std::log2(a);
        case Op::RCP: return T{1} / a;
        case Op::SQRT: return std::sqrt(a);
        case Op::RSQRT: return T{1} / std::sqrt(a);
        case Op::TANH: return std::tanh(a);
        case Op::SIN: return std::sin(a);
        case Op::COS: return std::cos(a);
        default: fail("not an instruction of floats: " + instruction.text);
    }
}

uint16_t to_bf16(float value) {
    const uint32_t bits = static_cast<uint32_t>(bits_of(value));
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

}  // namespace

uint64_t Machine::convert(const Instruction& instruction, uint64_t value) {
    const Type to = instruction.type, from = instruction.from;
    if (from.kind == Type::BF16 && to.kind == Type::FLOAT && to.bytes == 4) return (value & 0xffff) << 16;
    if (from.kind == Type::FLOAT) {
        const double real = from.bytes == 4 ? as<float>(value) : as<double>(value);
        if (to.kind == Type::BF16 && from.bytes == 4 && instruction.choice == NEAREST) return to_bf16(as<float>(value));
        if (to.kind == Type::FLOAT) {
            double result = real;
            if (instruction.choice == NEAREST_INTEGER) result = std::nearbyint(real);
            else if (instruction.choice == ZERO_INTEGER) result = std::trunc(real);
            else if (instruction.choice == FLOOR_INTEGER) result = std::floor(real);
            else if (instruction.choice == CEIL_INTEGER) result = std::ceil(real);
            else if (instruction.choice != EXACT && instruction.choice != NEAREST) fail("unknown rounding: " + instruction.text);
            if (instruction.saturate) result = result > 0.0 ? std::fmin(result, 1.0) : 0.0;
            return to.bytes == 4 ? bits_of(static_cast<float>(result)) : bits_of(result);
        }
        if (to.kind == Type::SIGNED || to.kind == Type::UNSIGNED) {
            double result = instruction.choice == NEAREST_INTEGER ? std::nearbyint(real)
                          : instruction.choice == ZERO_INTEGER   ? std::trunc(real)
                          : instruction.choice == FLOOR_INTEGER  ? std::floor(real)
                          : instruction.choice == CEIL_INTEGER   ? std::ceil(real) : NAN;
            if (result != result) fail("a conversion of NaN, or an unknown rounding: " + instruction.text);
            const double most = std::ldexp(1.0, 8 * to.bytes - (to.kind == Type::SIGNED));
            const double least = to.kind == Type::SIGNED ? -most : 0.0;
            if (result < least || result >= most) fail("a conversion out of range: " + instruction.text);
            return (to.kind == Type::SIGNED ? static_cast<uint64_t>(static_cast<int64_t>(result)) : static_cast<uint64_t>(result)) & mask(to.bytes);
        }
    }
    if (from.kind == Type::SIGNED || from.kind == Type::UNSIGNED) {
        const int64_t integer = from.kind == Type::SIGNED ? extended(value, from.bytes) : static_cast<int64_t>(value & mask(from.bytes));
        if (to.kind == Type::SIGNED || to.kind == Type::UNSIGNED) {
            if (instruction.saturate) fail("unknown conversion: " + instruction.text);
            return static_cast<uint64_t>(integer) & mask(to.bytes);
        }
        if (to.kind == Type::FLOAT && instruction.choice == NEAREST) {
            if (from.kind == Type::UNSIGNED) {
                const uint64_t natural = value & mask(from.bytes);
                return to.bytes == 4 ? bits_of(static_cast<float>(natural)) : bits_of(static_cast<double>(natural));
            }
            return to.bytes == 4 ? bits_of(static_cast<float>(integer)) : bits_of(static_cast<double>(integer));
        }
    }
    fail("unknown conversion: " + instruction.text);
}

// The instruction for some lanes: what kernels spend their time on in loops of its own, all else one by one.
void Machine::calculate(unsigned warp, uint32_t lanes, const Instruction& instruction) {
    const auto& operands = instruction.operands;
    static const Lanes none = {};
    Lanes scratch[4];
    const uint64_t* in[4];
    for (size_t i = 0; i < 4; ++i) in[i] = i + 1 < operands.size() ? read(warp, lanes, operands[i + 1], scratch[i]) : none;
    const uint64_t *a = in[0], *b = in[1], *c = in[2], *d = in[3];
    uint64_t* const out = written(warp, operands[0]);
    auto floats = [&](auto function) {
        each(lanes, [&](unsigned lane) { out[lane] = bits_of(function(as<float>(a[lane]), as<float>(b[lane]), as<float>(c[lane]))); });
    };
    auto integers = [&](auto function) {
        const uint64_t kept = mask(instruction.type.bytes);
        each(lanes, [&](unsigned lane) { out[lane] = function(a[lane], b[lane], c[lane]) & kept; });
    };
    const Type::Kind kind = instruction.type.kind;
    if (kind == Type::FLOAT && instruction.type.bytes == 4 && !instruction.flush && !instruction.down) {
        switch (instruction.op) {
            case Op::FMA: return floats([](float x, float y, float z) { return std::fma(x, y, z); });
            case Op::ADD: return floats([](float x, float y, float) { return x + y; });
            case Op::SUB: return floats([](float x, float y, float) { return x - y; });
            case Op::MUL: return floats([](float x, float y, float) { return x * y; });
            default: break;
        }
    } else if (kind == Type::BITS || kind == Type::SIGNED || kind == Type::UNSIGNED) {
        switch (instruction.op) {
            case Op::ADD: return integers([](uint64_t x, uint64_t y, uint64_t) { return x + y; });
            case Op::SUB: return integers([](uint64_t x, uint64_t y, uint64_t) { return x - y; });
            case Op::AND: return integers([](uint64_t x, uint64_t y, uint64_t) { return x & y; });
            case Op::OR: return integers([](uint64_t x, uint64_t y, uint64_t) { return x | y; });
            case Op::XOR: return integers([](uint64_t x, uint64_t y, uint64_t) { return x ^ y; });
            // The low half of a product is the same for both signs.
            case Op::MUL: if (instruction.lo) return integers([](uint64_t x, uint64_t y, uint64_t) { return x * y; }); break;
            case Op::MAD: if (instruction.lo) return integers([](uint64_t x, uint64_t y, uint64_t z) { return x * y + z; }); break;
            default: break;
        }
    }
    each(lanes, [&](unsigned lane) { out[lane] = arithmetic(instruction, a[lane], b[lane], c[lane], d[lane]); });
}

uint64_t Machine::arithmetic(const Instruction& instruction, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    const Type type = instruction.type;
    const unsigned bytes = type.bytes;
    if (instruction.op == Op::CVT) {
        if (type.kind != Type::BF16X2) return convert(instruction, a);
        // d = {a, b}: a in the upper half.
        if (instruction.choice != NEAREST || instruction.operands.size() != 3) fail("unknown conversion: " + instruction.text);
        return static_cast<uint32_t>(to_bf16(as<float>(a))) << 16 | to_bf16(as<float>(b));
    }
    if (instruction.op == Op::SELP) return c != 0 ? a : b;
    if (instruction.op == Op::SETP) {
        if (type.kind == Type::FLOAT) {
            if (bytes == 8) return compare(instruction.choice, as<double>(a), as<double>(b));
            float x = as<float>(a), y = as<float>(b);
            if (instruction.flush) x = flushed(x), y = flushed(y);
            return compare(instruction.choice, x, y);
        }
        if (type.kind == Type::SIGNED) return compare(instruction.choice, extended(a, bytes), extended(b, bytes));
        return compare(instruction.choice, a & mask(bytes), b & mask(bytes));
    }
    if (type.kind == Type::FLOAT) {
        if (bytes == 8) return bits_of(of_floats(instruction, as<double>(a), as<double>(b), as<double>(c)));
        float x = as<float>(a), y = as<float>(b), z = as<float>(c);
        if (instruction.flush) return bits_of(flushed(of_floats(instruction, flushed(x), flushed(y), flushed(z))));
        return bits_of(of_floats(instruction, x, y, z));
    }
    if (type.kind == Type::PREDICATE) {
        switch (instruction.op) {
            case Op::AND: return a && b;
            case Op::OR: return a || b;
            case Op::XOR: return (a != 0) != (b != 0);
            case Op::NOT: return !a;
            default: fail("not an instruction of predicates: " + instruction.text);
        }
    }
    if (type.kind == Type::BF16 || type.kind == Type::BF16X2) fail("unknown instruction: " + instruction.text);

    const bool is_signed = type.kind == Type::SIGNED;
    const uint64_t all = mask(bytes);
    const uint64_t x = a & all, y = b & all;
    const int64_t sx = extended(a, bytes), sy = extended(b, bytes);
    auto multiplied = [&]() -> unsigned __int128 {
        return is_signed ? static_cast<unsigned __int128>(static_cast<__int128>(sx) * sy) : static_cast<unsigned __int128>(x) * y;
    };
    switch (instruction.op) {
        case Op::ADD: return (x + y) & all;
        case Op::SUB: return (x - y) & all;
        case Op::MUL: case Op::MAD: {
            const unsigned __int128 product = multiplied();
            const uint64_t third = instruction.op == Op::MAD ? c : 0;
            if (instruction.wide) return (static_cast<uint64_t>(product) + third) & mask(2 * bytes);
            if (instruction.hi) return (static_cast<uint64_t>(product >> 8 * bytes) + third) & all;
            if (!instruction.lo) fail("unknown product: " + instruction.text);
            return (static_cast<uint64_t>(product) + third) & all;
        }
        case Op::DIV: case Op::REM: {
            if (y == 0) fail("a division by zero: " + instruction.text);
            const bool rest = instruction.op == Op::REM;
            if (is_signed) return static_cast<uint64_t>(rest ? sx % sy : sx / sy) & all;
            return rest ? x % y : x / y;
        }
        case Op::AND: return x & y;
        case Op::OR: return x | y;
        case Op::XOR: return x ^ y;
        case Op::NOT: return ~x & all;
        case Op::NEG: return (0 - x) & all;
        case Op::ABS: return static_cast<uint64_t>(sx < 0 ? -sx : sx) & all;
        case Op::MIN: return is_signed ? (sx < sy ? x : y) : (x < y ? x : y);
        case Op::MAX: return is_signed ? (sx > sy ? x : y) : (x > y ? x : y);
        case Op::SHL: case Op::SHR: {
            const uint64_t by = static_cast<uint32_t>(b);
            if (instruction.op == Op::SHL) return by >= 8 * bytes ? 0 : x << by & all;
            if (is_signed) return static_cast<uint64_t>(sx >> (by >= 8 * bytes ? 8 * bytes - 1 : by)) & all;
            return by >= 8 * bytes ? 0 : x >> by;
        }
        case Op::SHF: {
            // l: the upper half of {b, a} << c; r: the lower half of {b, a} >> c.
            uint64_t by = static_cast<uint32_t>(c);
            by = instruction.choice & 2 ? (by > 32 ? 32 : by) : by & 31;
            const uint64_t both = y << 32 | x;
            return (instruction.choice & 1 ? both >> by : both << by >> 32) & 0xffffffffu;
        }
        case Op::POPC: return __builtin_popcountll(x);
        case Op::CLZ: return x == 0 ? 8 * bytes : __builtin_clzll(x) - (64 - 8 * bytes);
        case Op::BREV: {
            uint64_t reversed = 0;
            for (unsigned i = 0; i < 8 * bytes; ++i) reversed |= (x >> i & 1) << (8 * bytes - 1 - i);
            return reversed;
        }
        case Op::BFI: {
            // d = b with the low bits of a inserted at c.
            const unsigned from = c & 0xff, length = d & 0xff;
            const uint64_t field = length >= 64 ? ~uint64_t{0} : (uint64_t{1} << length) - 1;
            if (from >= 8 * bytes) return y;
            return ((y & ~(field << from)) | (x & field) << from) & all;
        }
        case Op::BFE: {
            const unsigned from = b & 0xff, length = c & 0xff;
            if (from + length > 8 * bytes) fail("a field beyond its word: " + instruction.text);
            if (length == 0) return 0;
            const uint64_t field = length >= 64 ? ~uint64_t{0} : (uint64_t{1} << length) - 1;
            const uint64_t value = x >> from & field;
            return is_signed && (value >> (length - 1) & 1) ? (value | ~field) & all : value;
        }
        case Op::PRMT: {
            const uint64_t both = y << 32 | x;
            uint32_t result = 0;
            for (unsigned i = 0; i < 4; ++i) {
                const unsigned selector = c >> 4 * i & 15;
                uint32_t byte = both >> 8 * (selector & 7) & 255;
                if (selector & 8) byte = byte & 128 ? 255 : 0;
                result |= byte << 8 * i;
            }
            return result;
        }
        case Op::LOP3: {
            const unsigned table = d;
            uint64_t result = 0;
            for (unsigned which = 0; which < 8; ++which) {
                if (table >> which & 1) result |= (which & 4 ? x : ~x) & (which & 2 ? y : ~y) & (which & 1 ? c : ~c);
            }
            return result & all;
        }
        default: fail("unknown instruction: " + instruction.text);
    }
}

}  // namespace ptx
