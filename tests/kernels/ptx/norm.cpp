// The PTX of kernels/norm.cu against f64, over random rows.
//
//     norm PTX_FILE SHAPES SEED
//
// The bound, u = 2^-24, to first order and doubled for the rest. A lane adds at most t = ceil(columns / 32) terms, the
// tree 5 more. Root mean square: the sum of squares is right to (t + 6) u relative, the factor to half of that and 4 u
// for quotient, epsilon, root and inverse, and two products follow: (t / 2 + 9) u |y|. Layer norm: the mean is right
// to m = (t + 6) u mean|x|, which every difference and so the variance feel as well: |scale| / deviation times
// (2 m + (t / 2 + 12) u |x - mean|), and u |bias| + u |y|. A bf16 result is rounded once more, 2^-8 |y|. x and the residual
// are taken as their f32 sum, whose bits are compared.

#include <algorithm>

#include "check.hpp"

namespace {

struct Rows {
    int rows, columns;
    bool adds, biased;
    float epsilon;
    std::vector<float> x, scale, bias;
    std::vector<uint16_t> residual;
};

Rows draw(Random& random, int index) {
    static const int columns[] = {1, 3, 31, 33, 64, 100, 127, 128, 130, 576, 1023, 2048, 4096};
    Rows rows{random.between(1, 6), columns[index % 13], random.chance(0.5), random.chance(0.5), random.chance(0.5) ? 1e-5f : 1e-6f, {}, {}, {}, {}};
    const size_t count = static_cast<size_t>(rows.rows) * rows.columns;
    const float offset = random.chance(0.3) ? 30.0f : 0.0f;
    for (size_t i = 0; i < count; ++i) {
        rows.x.push_back(offset + random.normal());
        rows.residual.push_back(to_bf16(random.normal()));
    }
    for (int i = 0; i < rows.columns; ++i) rows.scale.push_back(1.0f + 0.3f * random.normal()), rows.bias.push_back(random.normal());
    return rows;
}

struct Answers {
    std::vector<uint16_t> rounded;
    std::vector<float> whole, sums;
};

Answers ask(ptx::Machine& machine, const Rows& rows, bool centred, ptx::Schedule schedule) {
    Answers answers{std::vector<uint16_t>(rows.x.size(), BF16_NAN), std::vector<float>(rows.x.size(), NAN), {}};
    const uint16_t* const residual = rows.adds ? rows.residual.data() : nullptr;
    const float* const bias = rows.biased ? rows.bias.data() : nullptr;
    for (bool whole : {false, true}) {
        answers.sums = rows.x;
        machine.forget();
        allow(machine, answers.sums), allow(machine, rows.residual), allow(machine, rows.scale), allow(machine, rows.bias);
        allow(machine, answers.rounded), allow(machine, answers.whole);
        const void* const out = whole ? static_cast<const void*>(answers.whole.data()) : answers.rounded.data();
        const std::string name = std::string(centred ? "layer_norm" : "rms_norm") + (whole ? "_f32" : "");
        std::vector<ptx::Argument> arguments{out, answers.sums.data(), residual, rows.scale.data()};
        if (centred) arguments.push_back(bias);
        arguments.insert(arguments.end(), {rows.rows, rows.columns, rows.epsilon});
        machine.launch(name, (rows.rows + 3) / 4, 1, 128, 0, arguments, schedule);
    }
    return answers;
}

template <typename T>
bool same(const T* a, const T* b, size_t count) { return std::memcmp(a, b, count * sizeof(T)) == 0; }

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: norm PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    double worst = 0.0;
    size_t elements = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const Rows rows = draw(random, index);
        const bool centred = index % 2 == 1;
        const int columns = rows.columns;
        const std::string what = "shape " + std::to_string(index) + " (" + std::to_string(rows.rows) + ", " + std::to_string(columns) + ")";
        const Answers answers = ask(machine, rows, centred, ptx::Schedule::FORWARD);
        const double terms = (columns + 31) / 32;
        for (int r = 0; r < rows.rows; ++r) {
            const size_t start = static_cast<size_t>(r) * columns;
            double mean = 0.0, size = 0.0, variance = 0.0;
            for (int c = 0; c < columns; ++c) {
                const float sum = rows.adds ? rows.x[start + c] + from_bf16(rows.residual[start + c]) : rows.x[start + c];
                if (!same(&sum, &answers.sums[start + c], 1)) wrong(what + ": wrong sum with the residual");
                mean += sum, size += std::fabs(sum);
            }
            mean = centred ? mean / columns : 0.0, size /= columns;
            for (int c = 0; c < columns; ++c) variance += std::pow(answers.sums[start + c] - mean, 2) / columns;
            const double deviation = std::sqrt(variance + rows.epsilon);
            for (int c = 0; c < columns; ++c) {
                const double factor = std::fabs(rows.scale[c]) / deviation, difference = answers.sums[start + c] - mean;
                const double bias = centred && rows.biased ? rows.bias[c] : 0.0;
                const double exact = difference / deviation * rows.scale[c] + bias;
                const double drift = centred ? (terms + 6) * F32_UNIT * size : 0.0;
                const double bound = 2.0 * (factor * (2 * drift + (terms / 2 + 12) * F32_UNIT * std::fabs(difference)) +
                                            F32_UNIT * (std::fabs(bias) + std::fabs(exact))) + 0x1p-126;
                // A variance near the square of the mean's error feels it to second order too.
                const double feels = centred ? factor * std::fabs(difference) * drift * drift / (deviation * deviation) : 0.0;
                const double error = std::fabs(answers.whole[start + c] - exact), limit = bound + feels;
                const double rounded = std::fabs(from_bf16(answers.rounded[start + c]) - exact);
                if (!(error <= limit)) wrong(what + ": f32, row " + std::to_string(r) + " column " + std::to_string(c));
                if (!(rounded <= limit + BF16_UNIT * (std::fabs(exact) + limit))) wrong(what + ": bf16");
                worst = std::max(worst, error / limit);
                ++elements;
            }
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            const Answers again = ask(machine, rows, centred, schedule);
            if (again.rounded != answers.rounded || !same(again.whole.data(), answers.whole.data(), answers.whole.size()))
                wrong(what + ": other bits in another schedule");
        }
        // The last row alone, and after a row that is not a number: the same bits.
        const size_t last = static_cast<size_t>(rows.rows - 1) * columns;
        for (bool spoilt : {false, true}) {
            Rows other = rows;
            other.rows = 1 + spoilt;
            other.x.assign(spoilt ? columns : 0, NAN), other.residual.assign(spoilt ? columns : 0, 0);
            other.x.insert(other.x.end(), rows.x.begin() + last, rows.x.end());
            other.residual.insert(other.residual.end(), rows.residual.begin() + last, rows.residual.end());
            const Answers moved = ask(machine, other, centred, ptx::Schedule::FORWARD);
            const size_t from = static_cast<size_t>(spoilt) * columns;
            if (!same(&moved.rounded[from], &answers.rounded[last], columns) || !same(&moved.whole[from], &answers.whole[last], columns))
                wrong(what + ": other bits in another batch");
        }
    }
    std::printf("norm: %d shapes, %zu elements against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, elements, worst,
                static_cast<double>(machine.steps));
}
