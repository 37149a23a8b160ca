// The PTX of kernels/adamw.cu against f64, and against f32 as src/train/optimiser.rs has it, over random counts.
//
//     adamw PTX_FILE SHAPES SEED
//
// The bound of a step, u = 2^-24, to first order and doubled for the rest. g is right to u, so the first moment to u (|beta1 first|
// + 4 |(1 - beta1) g|) + u |first'|, which is m, and the second to 6 u second', both with the rounding of 1 - beta. Half of that and 3 u reach
// the root, quotient and product add 3: the step is right to rate m / root + 9 u |step|, the value to that and u |values keep| + u |value'|. Every
// bit is compared with the same formula in f32 too, and rounded with the value's rounding.
//
// A sum of squares: a thread adds at most t terms, each exact, and 5 + 3 partial sums follow: (t + 8) 2^-53 of itself, against an
// f80 sum. round_values is one product, whose bits are compared.

#include <algorithm>

#include "check.hpp"

namespace {

struct Settings {
    float keep, clip, beta1, beta2, rate, root_correction, epsilon;
};

struct State {
    std::vector<float> values, first, second;
    std::vector<uint16_t> rounded;
};

bool same(const std::vector<float>& a, const std::vector<float>& b) { return std::memcmp(a.data(), b.data(), a.size() * 4) == 0; }

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: adamw PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    static const int counts[] = {1, 7, 8, 9, 127, 1000, 1023, 1024, 1025, 2048, 4099, 6001, 9216};
    double worst = 0.0, worst_sum = 0.0;
    size_t elements = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const long long size = counts[index % 13];
        const std::string what = "shape " + std::to_string(index) + " (" + std::to_string(size) + ")";
        // As many blocks as the host launches, or fewer, which then go round several times.
        const int blocks = random.chance(0.5) ? (size + 1023) / 1024 : random.between(1, (size + 1023) / 1024);
        const int steps = random.between(1, 30);
        const Settings settings{random.chance(0.5) ? 1.0f : 0.999f, random.chance(0.5) ? 1.0f : 0.37f, 0.9f, random.chance(0.5) ? 0.95f : 0.999f,
                                static_cast<float>(1e-3 / (1.0 - std::pow(0.9, steps))), static_cast<float>(std::sqrt(1.0 - std::pow(0.95, steps))), 1e-8f};
        State before{{}, {}, {}, std::vector<uint16_t>(size, BF16_NAN)};
        std::vector<float> gradient;
        const float spread = random.chance(0.3) ? 1e-6f : 1.0f;
        for (long long i = 0; i < size; ++i) {
            before.values.push_back(random.normal());
            before.first.push_back(0.1f * spread * random.normal()), before.second.push_back(spread * spread * std::fabs(random.normal()));
            gradient.push_back(random.chance(0.02) ? 0.0f : spread * random.normal());
            if (random.chance(0.02)) before.first.back() = before.second.back() = 0.0f;
        }
        auto ask = [&](bool rounds, ptx::Schedule schedule) {
            State state = before;
            machine.forget();
            allow(machine, state.values), allow(machine, state.first), allow(machine, state.second), allow(machine, state.rounded), allow(machine, gradient);
            machine.launch("adamw", blocks, 1, 128, 0,
                           {state.values.data(), rounds ? state.rounded.data() : static_cast<uint16_t*>(nullptr), state.first.data(), state.second.data(), gradient.data(),
                            size, settings.keep, settings.clip, settings.beta1, settings.beta2, settings.rate, settings.root_correction, settings.epsilon},
                           schedule);
            return state;
        };
        const State state = ask(true, ptx::Schedule::FORWARD);
        const auto& [keep, clip, beta1, beta2, rate, root_correction, epsilon] = settings;
        for (long long i = 0; i < size; ++i) {
            const float g = gradient[i] * clip;
            const float first = beta1 * before.first[i] + (1.0f - beta1) * g;
            const float second = beta2 * before.second[i] + (1.0f - beta2) * g * g;
            const float root = std::sqrt(second) / root_correction + epsilon;
            const float value = before.values[i] * keep - rate * first / root;
            const uint16_t rounded = to_bf16(value);
            if (std::memcmp(&state.first[i], &first, 4) != 0) wrong(what + ": first moment, element " + std::to_string(i));
            if (std::memcmp(&state.second[i], &second, 4) != 0) wrong(what + ": second moment, element " + std::to_string(i));
            if (std::memcmp(&state.values[i], &value, 4) != 0) wrong(what + ": value, element " + std::to_string(i));
            if (state.rounded[i] != rounded) wrong(what + ": rounded value, element " + std::to_string(i));

            const double exact_g = static_cast<double>(gradient[i]) * clip, old = static_cast<double>(beta1) * before.first[i];
            const double exact_first = old + (1.0 - beta1) * exact_g;
            const double exact_second = static_cast<double>(beta2) * before.second[i] + (1.0 - beta2) * exact_g * exact_g;
            const double exact_root = std::sqrt(exact_second) / root_correction + epsilon;
            const double step = rate * exact_first / exact_root, kept = static_cast<double>(before.values[i]) * keep, exact = kept - step;
            const double of_first = F32_UNIT * (std::fabs(old) + 4 * std::fabs((1.0 - beta1) * exact_g) + std::fabs(exact_first));
            const double bound = 2.0 * (rate * of_first / exact_root + F32_UNIT * (9 * std::fabs(step) + std::fabs(kept) + std::fabs(exact))) + 0x1p-126;
            const double error = std::fabs(state.values[i] - exact);
            if (!(error <= bound)) wrong(what + ": " + std::to_string(state.values[i]) + " for " + std::to_string(exact));
            worst = std::max(worst, error / bound);
            ++elements;
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            const bool rounds = schedule == ptx::Schedule::BACKWARD;
            const State again = ask(rounds, schedule);
            if (!same(again.values, state.values) || !same(again.first, state.first) || !same(again.second, state.second))
                wrong(what + ": other bits in another schedule");
            if (again.rounded != (rounds ? state.rounded : before.rounded)) wrong(what + ": other rounded values in another schedule");
        }

        std::vector<double> parts;
        std::vector<uint16_t> out;
        for (ptx::Schedule schedule : {ptx::Schedule::FORWARD, ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            std::vector<double> sums(blocks, NAN);
            std::vector<uint16_t> products(size, BF16_NAN);
            machine.forget();
            allow(machine, sums), allow(machine, products), allow(machine, gradient);
            machine.launch("sum_of_squares", blocks, 1, 128, 0, {sums.data(), gradient.data(), size}, schedule);
            machine.launch("round_values", blocks, 1, 128, 0, {products.data(), gradient.data(), clip, size}, schedule);
            if (parts.empty()) parts = sums, out = products;
            if (std::memcmp(parts.data(), sums.data(), blocks * 8) != 0 || out != products) wrong(what + ": other bits in another schedule");
        }
        const long long stride = static_cast<long long>(blocks) * 1024;
        for (int block = 0; block < blocks; ++block) {
            long double exact = 0.0L;
            for (long long from = block * 1024LL; from < size; from += stride) {
                for (long long i = from; i < std::min(from + 1024, size); ++i) exact += static_cast<long double>(gradient[i]) * gradient[i];
            }
            const double terms = 8 * ((size + stride - 1) / stride), bound = (terms + 8) * 0x1p-53 * static_cast<double>(exact);
            const double error = std::fabs(static_cast<double>(parts[block] - exact));
            if (!(error <= bound)) wrong(what + ": sum of squares of block " + std::to_string(block));
            if (bound > 0.0) worst_sum = std::max(worst_sum, error / bound);
        }
        for (long long i = 0; i < size; ++i) {
            if (out[i] != to_bf16(clip * gradient[i])) wrong(what + ": rounded product, element " + std::to_string(i));
        }
    }
    std::printf("adamw: %d shapes, %zu elements: the bits of f32; worst error %.3g of the bound, of sums of squares %.3g; %.3g instructions\n", shapes,
                elements, worst, worst_sum, static_cast<double>(machine.steps));
}
