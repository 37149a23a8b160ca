// The PTX of kernels/gated_mlp.cu against f64, over random rows.
//
//     gated_mlp PTX_FILE SHAPES SEED
//
// The bound, relative, u = 2^-24, then one rounding to bf16. SwiGLU: exp(-g) is right to (|g| + 4) u, being exp2 of a
// rounded product, and 4 roundings follow: (|g| + 8) u; below -88.7 it overflows, and the result is 0. GELU: the bracket 1 + erf or 1 + tanh has an absolute
// error of 8 u (functions of 2 to 4 ulp, and the rounding of their argument, which their slope times the argument, at
// most 1/2, weighs), so |g up| / 2 times 8 u, and 4 u of the result.

#include <algorithm>

#include "check.hpp"

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: gated_mlp PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    static const int inners[] = {1, 7, 8, 63, 64, 129, 512, 1000, 1023, 1024, 1536, 4104};
    static const char* names[] = {"swiglu", "geglu_erf", "geglu_tanh"};
    double worst = 0.0;
    size_t elements = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const int inner = inners[index % 12], rows = random.between(1, 4), kind = index / 12 % 3;
        const float spread = random.chance(0.3) ? 20.0f : 2.0f;
        const std::string what = std::string(names[kind]) + ", shape " + std::to_string(index);
        std::vector<uint16_t> gate_up(static_cast<size_t>(rows) * 2 * inner);
        for (uint16_t& value : gate_up) value = to_bf16(spread * random.normal());
        auto ask = [&](const std::vector<uint16_t>& values, ptx::Schedule schedule) {
            std::vector<uint16_t> out(values.size() / 2, BF16_NAN);
            machine.forget();
            allow(machine, out), allow(machine, values);
            machine.launch(names[kind], values.size() / 2 / inner, 1, 128, 0, {out.data(), values.data(), inner}, schedule);
            return out;
        };
        const std::vector<uint16_t> out = ask(gate_up, ptx::Schedule::FORWARD);
        for (int row = 0; row < rows; ++row) {
            for (int column = 0; column < inner; ++column) {
                const double g = from_bf16(gate_up[static_cast<size_t>(row) * 2 * inner + column]);
                const double up = from_bf16(gate_up[static_cast<size_t>(row) * 2 * inner + inner + column]);
                const double gate = kind == 0   ? g / (1.0 + std::exp(-g))
                                    : kind == 1 ? 0.5 * g * std::erfc(-g * std::sqrt(0.5))
                                                : 0.5 * g * (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (g + 0.044715 * g * g * g)));
                const double exact = gate * up;
                const double slack = kind == 0 ? (g < -88.7 ? 1.0 / F32_UNIT : std::fabs(g) + 8) * F32_UNIT * std::fabs(exact)
                                               : F32_UNIT * (4 * std::fabs(g * up) + 4 * std::fabs(exact));
                const double bound = BF16_UNIT * std::fabs(exact) + 1.1 * slack + 0x1p-126;
                const double error = std::fabs(from_bf16(out[static_cast<size_t>(row) * inner + column]) - exact);
                if (!(error <= bound)) wrong(what + ": gate " + std::to_string(g) + ", up " + std::to_string(up));
                worst = std::max(worst, error / bound);
                ++elements;
            }
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED})
            if (ask(gate_up, schedule) != out) wrong(what + ": other bits in another schedule");
        // The last row after one that is not a number.
        std::vector<uint16_t> other(2 * inner, BF16_NAN);
        other.insert(other.end(), gate_up.end() - 2 * inner, gate_up.end());
        const std::vector<uint16_t> moved = ask(other, ptx::Schedule::FORWARD);
        if (!std::equal(moved.begin() + inner, moved.end(), out.end() - inner)) wrong(what + ": other bits in another batch");
    }
    std::printf("gated_mlp: %d shapes, %zu elements against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, elements, worst,
                static_cast<double>(machine.steps));
}
