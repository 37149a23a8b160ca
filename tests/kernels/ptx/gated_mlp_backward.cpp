// The PTX of kernels/gated_mlp_backward.cu against f64, over random rows.
//
//     gated_mlp_backward PTX_FILE SHAPES SEED
//
// The bound, u = 2^-24, to first order, by 1.1 for the rest, then one rounding to bf16. exp(-g) is right to (|g| + 4) u relative
// (see gated_mlp.cpp), which 1 - s weighs in s: d = ((|g| + 4) (1 - s) + 2) u. 1 - s is right to s d + u (1 - s), so the bracket
// to e = |g| (s d + u (1 - s)) + u |1 + g (1 - s)|; above 17, where s is 1 in f32, to e = |g| (1 - s) + u. The gradient of the gate
// is right to |d_out up| s e + (d + 3 u) |d_gate|, of up to (d + 3 u) |d_up|. Below -88.7 exp overflows, and both are 0.

#include <algorithm>

#include "check.hpp"

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: gated_mlp_backward PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    static const int inners[] = {1, 7, 8, 63, 64, 129, 512, 1000, 1023, 1024, 1536, 2056};
    double worst = 0.0;
    size_t elements = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const int inner = inners[index % 12], rows = random.between(1, 4);
        const float spread = random.chance(0.3) ? 20.0f : 2.0f;
        const std::string what = "shape " + std::to_string(index);
        std::vector<uint16_t> gate_up(static_cast<size_t>(rows) * 2 * inner);
        std::vector<float> d_out(static_cast<size_t>(rows) * inner);
        for (uint16_t& value : gate_up) value = to_bf16(spread * random.normal());
        for (float& value : d_out) value = random.normal();
        // Far gates, up to the largest number, also where the rest is so large that a product overflows.
        for (int row = 0; row < rows; ++row) {
            const size_t column = random.between(0, inner - 1);
            static const float far[] = {17.5f, -87.0f, 89.0f, -90.0f, 3e4f, -3e4f, 3.3e38f, -3.3e38f};
            gate_up[static_cast<size_t>(row) * 2 * inner + column] = to_bf16(far[random.between(0, 7)]);
            if (random.chance(0.5)) d_out[static_cast<size_t>(row) * inner + column] = random.chance(0.5) ? 0.0f : 3.4e38f;
            if (random.chance(0.5)) gate_up[static_cast<size_t>(row) * 2 * inner + inner + column] = random.chance(0.5) ? 0 : to_bf16(-3.3e38f);
        }
        auto ask = [&](const std::vector<uint16_t>& values, const std::vector<float>& from, ptx::Schedule schedule) {
            std::vector<uint16_t> out(values.size(), BF16_NAN);
            machine.forget();
            allow(machine, out), allow(machine, values), allow(machine, from);
            machine.launch("swiglu_backward", from.size() / inner, 1, 128, 0, {out.data(), from.data(), values.data(), inner}, schedule);
            return out;
        };
        const std::vector<uint16_t> out = ask(gate_up, d_out, ptx::Schedule::FORWARD);
        auto compare = [&](uint16_t bits, double exact, double slack, double g) {
            const double found = from_bf16(bits), bound = BF16_UNIT * std::fabs(exact) + 1.1 * slack + 0x1p-126;
            // Infinite where bf16 holds no more.
            if (std::fabs(exact) + bound >= 0x1.ffp127 && std::isinf(found) && std::signbit(found) == std::signbit(exact)) return;
            const double error = std::fabs(found - exact);
            if (!(error <= bound)) wrong(what + ": gate " + std::to_string(g) + ": " + std::to_string(found) + " for " + std::to_string(exact));
            worst = std::max(worst, error / bound);
            ++elements;
        };
        for (int row = 0; row < rows; ++row) {
            for (int column = 0; column < inner; ++column) {
                const size_t at = static_cast<size_t>(row) * 2 * inner + column;
                const double g = from_bf16(gate_up[at]), up = from_bf16(gate_up[at + inner]), from = d_out[static_cast<size_t>(row) * inner + column];
                const double s = 1.0 / (1.0 + std::exp(-g)), rest = 1.0 / (1.0 + std::exp(g)), bracket = 1.0 + g * rest;
                const double d_gate = from * up * s * bracket, d_up = from * g * s;
                const double d = ((std::fabs(g) + 4) * rest + 2) * F32_UNIT;
                const double e = g > 17 ? std::fabs(g) * rest + F32_UNIT
                                        : std::fabs(g) * (s * d + F32_UNIT * rest) + F32_UNIT * std::fabs(bracket);
                const bool zero = g < -88.7;
                compare(out[at], d_gate, zero ? std::fabs(d_gate) : std::fabs(from * up) * s * e + (d + 3 * F32_UNIT) * std::fabs(d_gate), g);
                compare(out[at + inner], d_up, zero ? std::fabs(d_up) : (d + 3 * F32_UNIT) * std::fabs(d_up), g);
            }
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED})
            if (ask(gate_up, d_out, schedule) != out) wrong(what + ": other bits in another schedule");
        // The last row after one that is not a number.
        std::vector<uint16_t> other(2 * inner, BF16_NAN);
        std::vector<float> from(inner, NAN);
        other.insert(other.end(), gate_up.end() - 2 * inner, gate_up.end());
        from.insert(from.end(), d_out.end() - inner, d_out.end());
        const std::vector<uint16_t> moved = ask(other, from, ptx::Schedule::FORWARD);
        if (!std::equal(moved.end() - 2 * inner, moved.end(), out.end() - 2 * inner)) wrong(what + ": other bits in another batch");
    }
    std::printf("gated_mlp_backward: %d shapes, %zu elements against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, elements, worst,
                static_cast<double>(machine.steps));
}
