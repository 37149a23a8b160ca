// The PTX of kernels/head.cu against f64, over random shapes.
//
//     head PTX_FILE SHAPES SEED
//
// The bound, u = 2^-24, to first order and doubled for the rest. head_linear: a lane adds at most t = ceil(columns / 32)
// products with one rounding each, the tree 5 more: (t + 5) u sum |x w|. head_swiglu: exp is right to 2 units, so the sum to 3 u,
// quotient and product add 2, and exp's own argument is exact: 8 u |y|. head_reparameterise: the halved logvar is
// exact, exp is right to 2 units, the last step rounds once: 4 u |sigma noise| + u |y|. Columns are copied.

#include <algorithm>

#include "check.hpp"

namespace {

double worst = 0.0;
size_t elements = 0;

void compare(const std::string& what, double found, double exact, double bound) {
    const double error = std::fabs(found - exact), limit = 2.0 * bound + 0x1p-126;
    if (!(error <= limit)) wrong(what + ": " + std::to_string(found) + " for " + std::to_string(exact));
    worst = std::max(worst, error / limit);
    ++elements;
}

std::vector<float> normal(Random& random, size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = random.normal();
    return values;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: head PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    static const int widths[] = {1, 16, 31, 33, 64, 100, 128, 130, 512, 577, 1024, 4096};
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const int rows = random.between(1, 6), columns = widths[index % 12], outputs = random.between(1, 11);
        const std::string what = "shape " + std::to_string(index) + " (" + std::to_string(rows) + ", " + std::to_string(columns) + ")";
        const std::vector<float> x = normal(random, static_cast<size_t>(rows) * 2 * columns), noise = normal(random, static_cast<size_t>(rows) * columns);
        const std::vector<float> weight = normal(random, static_cast<size_t>(outputs) * columns);
        const int start = random.between(0, columns);
        std::vector<float> first;
        for (ptx::Schedule schedule : {ptx::Schedule::FORWARD, ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            std::vector<float> products(static_cast<size_t>(rows) * outputs, NAN), wide(static_cast<size_t>(rows) * columns, NAN);
            std::vector<float> gated(wide), chosen(wide), drawn(wide);
            machine.forget();
            for (const auto* values : std::initializer_list<const std::vector<float>*>{&x, &noise, &weight, &products, &gated, &chosen, &drawn}) allow(machine, *values);
            machine.launch("head_linear", rows, (outputs + 3) / 4, 128, 0, {products.data(), x.data(), weight.data(), outputs, columns}, schedule);
            machine.launch("head_swiglu", rows, 1, 128, 0, {gated.data(), x.data(), columns}, schedule);
            machine.launch("head_columns", rows, 1, 128, 0, {chosen.data(), x.data(), start, columns, 2 * columns}, schedule);
            machine.launch("head_reparameterise", rows, 1, 128, 0, {drawn.data(), x.data(), noise.data(), columns}, schedule);
            std::vector<float> all(products);
            for (const auto* values : {&gated, &chosen, &drawn}) all.insert(all.end(), values->begin(), values->end());
            if (first.empty()) first = all;
            if (std::memcmp(first.data(), all.data(), all.size() * 4) != 0) wrong(what + ": other bits in another schedule");
            if (schedule != ptx::Schedule::FORWARD) continue;
            for (int row = 0; row < rows; ++row) {
                const float* const pair = &x[static_cast<size_t>(row) * 2 * columns];
                // head_linear reads x as rows of `columns`.
                const float* const factors = &x[static_cast<size_t>(row) * columns];
                for (int output = 0; output < outputs; ++output) {
                    double exact = 0.0, size = 0.0;
                    for (int c = 0; c < columns; ++c) {
                        const double term = static_cast<double>(factors[c]) * weight[static_cast<size_t>(output) * columns + c];
                        exact += term, size += std::fabs(term);
                    }
                    compare(what + ", linear", products[static_cast<size_t>(row) * outputs + output], exact, ((columns + 31) / 32 + 5) * F32_UNIT * size);
                }
                for (int c = 0; c < columns; ++c) {
                    const size_t at = static_cast<size_t>(row) * columns + c;
                    const double gate = pair[c], up = pair[columns + c], swiglu = gate / (1.0 + std::exp(-gate)) * up;
                    compare(what + ", swiglu", gated[at], swiglu, 8 * F32_UNIT * std::fabs(swiglu));
                    const double step = std::exp(0.5 * up) * noise[at], latent = gate + step;
                    compare(what + ", reparameterise", drawn[at], latent, F32_UNIT * (4 * std::fabs(step) + std::fabs(latent)));
                    if (std::memcmp(&chosen[at], pair + start + c, 4) != 0) wrong(what + ": another column");
                }
            }
        }
        // The last row alone: the same bits.
        const size_t last = static_cast<size_t>(rows - 1) * columns;
        std::vector<float> alone(outputs, NAN);
        machine.forget();
        allow(machine, x), allow(machine, weight), allow(machine, alone);
        machine.launch("head_linear", 1, (outputs + 3) / 4, 128, 0, {alone.data(), x.data() + last, weight.data(), outputs, columns}, ptx::Schedule::FORWARD);
        if (std::memcmp(alone.data(), &first[static_cast<size_t>(rows - 1) * outputs], outputs * 4) != 0) wrong(what + ": other bits alone");
    }
    std::printf("head: %d shapes, %zu elements against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, elements, worst,
                static_cast<double>(machine.steps));
}
