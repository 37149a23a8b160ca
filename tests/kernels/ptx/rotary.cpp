// The PTX of kernels/rotary.cu against f64, over random rows.
//
//     rotary PTX_FILE SHAPES SEED
//
// The bound: two products and a sum in f32, at most 2 u (|x c| + |y s|) with u = 2^-24, then one rounding to bf16.

#include <algorithm>

#include "check.hpp"

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: rotary PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    static const int head_dims[] = {8, 64, 80, 96, 128};
    double worst = 0.0;
    size_t elements = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const int head_dim = head_dims[index % 5], half = head_dim / 2, rows = random.between(1, 9);
        const int rotated = random.between(1, 12), plain = random.between(0, 4), known = random.between(1, 40);
        const int columns = (rotated + plain) * head_dim;
        const std::string what = "shape " + std::to_string(index);
        std::vector<float> x(static_cast<size_t>(rows) * columns), cosines(static_cast<size_t>(known) * half), sines(cosines.size());
        std::vector<int> positions(rows);
        for (float& value : x) value = random.normal();
        for (size_t i = 0; i < cosines.size(); ++i) {
            const double angle = 7.0 * random.normal();
            cosines[i] = std::cos(angle), sines[i] = std::sin(angle);
        }
        for (int& position : positions) position = random.between(0, known - 1);
        auto ask = [&](const std::vector<float>& values, const std::vector<int>& at, ptx::Schedule schedule) {
            std::vector<uint16_t> out(values.size(), BF16_NAN);
            machine.forget();
            allow(machine, out), allow(machine, values), allow(machine, cosines), allow(machine, sines), allow(machine, at);
            machine.launch("rotary_embedding", at.size(), 1, 128, 0,
                           {out.data(), values.data(), cosines.data(), sines.data(), at.data(), rotated, plain, head_dim}, schedule);
            return out;
        };
        const std::vector<uint16_t> out = ask(x, positions, ptx::Schedule::FORWARD);
        for (int row = 0; row < rows; ++row) {
            for (int column = 0; column < columns; ++column) {
                const size_t at = static_cast<size_t>(row) * columns + column;
                const int head = column / head_dim, i = column % half;
                double exact = x[at], size = 0.0;
                if (head < rotated) {
                    const bool second = column % head_dim >= half;
                    const double cosine = cosines[static_cast<size_t>(positions[row]) * half + i];
                    const double sine = sines[static_cast<size_t>(positions[row]) * half + i];
                    const double other = second ? x[at - half] : -x[at + half];
                    exact = x[at] * cosine + other * sine;
                    size = std::fabs(x[at] * cosine) + std::fabs(other * sine);
                }
                const double bound = BF16_UNIT * std::fabs(exact) + 2.1 * F32_UNIT * size;
                const double error = std::fabs(from_bf16(out[at]) - exact);
                if (!(error <= bound)) wrong(what + ": row " + std::to_string(row) + " column " + std::to_string(column));
                if (bound > 0.0) worst = std::max(worst, error / bound);
                ++elements;
            }
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED})
            if (ask(x, positions, schedule) != out) wrong(what + ": other bits in another schedule");
        // The rows in the opposite order, the first one not a number: the others have the same bits.
        std::vector<float> turned;
        for (int row = rows; row-- > 0;) turned.insert(turned.end(), &x[static_cast<size_t>(row) * columns], &x[static_cast<size_t>(row) * columns] + columns);
        std::fill_n(turned.begin(), columns, NAN);
        const std::vector<uint16_t> moved = ask(turned, std::vector<int>(positions.rbegin(), positions.rend()), ptx::Schedule::FORWARD);
        for (int row = 0; row + 1 < rows; ++row) {
            if (!std::equal(&out[static_cast<size_t>(row) * columns], &out[static_cast<size_t>(row) * columns] + columns,
                            &moved[static_cast<size_t>(rows - 1 - row) * columns]))
                wrong(what + ": other bits in another batch");
        }
    }
    std::printf("rotary: %d shapes, %zu elements against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, elements, worst,
                static_cast<double>(machine.steps));
}
