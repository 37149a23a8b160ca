// The PTX of kernels/rows_backward.cu against f64, over random rows.
//
//     rows_backward PTX_FILE SHAPES SEED
//
// The bound, u = 2^-24, to first order and doubled for the rest: n sources are added in turn, and their sum to what was there:
// n u sum |x| + u |y|. Rows that are no target keep their bits, and rows of x that are no source are not a number.

#include <algorithm>

#include "check.hpp"

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: rows_backward PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    static const int widths[] = {1, 3, 4, 63, 64, 130, 512, 516, 577, 1024, 2052};
    double worst = 0.0;
    size_t elements = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const int columns = widths[index % 11], known = random.between(1, 12), rows = random.between(1, 40);
        const std::string what = "shape " + std::to_string(index) + " (" + std::to_string(columns) + " columns)";
        std::vector<int> targets(known);
        for (int i = 0; i < known; ++i) targets[i] = i;
        std::shuffle(targets.begin(), targets.end(), random.engine);
        targets.resize(random.between(1, known));
        // Targets have anything from no source to some twenty, and a source may be of several, or of one twice.
        const int all = targets.size();
        std::vector<int> starts{0}, sources;
        for (int b = 0; b < all; ++b) {
            const int most = random.chance(0.2) ? 0 : random.chance(0.3) ? 20 : 5;
            for (int i = random.between(0, most); i > 0; --i) sources.push_back(random.between(0, rows - 1));
            starts.push_back(sources.size());
        }
        std::vector<float> x(static_cast<size_t>(rows) * columns, NAN), before(static_cast<size_t>(known) * columns);
        for (int source : sources) {
            for (int c = 0; c < columns; ++c) x[static_cast<size_t>(source) * columns + c] = random.normal();
        }
        for (float& value : before) value = random.normal();
        auto ask = [&](int pieces, ptx::Schedule schedule) {
            std::vector<float> out(before);
            machine.forget();
            allow(machine, out), allow(machine, x), allow(machine, targets), allow(machine, starts), allow(machine, sources);
            machine.launch("add_rows", all, pieces, 128, 0, {out.data(), x.data(), targets.data(), starts.data(), sources.data(), columns}, schedule);
            return out;
        };
        const std::vector<float> out = ask(1, ptx::Schedule::FORWARD);
        for (int row = 0; row < known; ++row) {
            const int b = std::find(targets.begin(), targets.end(), row) - targets.begin();
            const int begin = b < all ? starts[b] : 0, end = b < all ? starts[b + 1] : 0;
            for (int c = 0; c < columns; ++c) {
                const size_t at = static_cast<size_t>(row) * columns + c;
                double exact = before[at], size = 0.0;
                for (int i = begin; i < end; ++i) {
                    const double added = x[static_cast<size_t>(sources[i]) * columns + c];
                    exact += added, size += std::fabs(added);
                }
                const double bound = begin == end ? 0.0 : 2.0 * F32_UNIT * ((end - begin) * size + std::fabs(exact));
                const double error = std::fabs(out[at] - exact);
                if (!(error <= bound)) wrong(what + ": row " + std::to_string(row) + " column " + std::to_string(c));
                if (bound > 0.0) worst = std::max(worst, error / bound);
                ++elements;
            }
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            const std::vector<float> again = ask(random.between(1, 3), schedule);
            if (std::memcmp(again.data(), out.data(), out.size() * 4) != 0) wrong(what + ": other bits in another schedule or grid");
        }
    }
    std::printf("rows_backward: %d shapes, %zu elements against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, elements, worst,
                static_cast<double>(machine.steps));
}
