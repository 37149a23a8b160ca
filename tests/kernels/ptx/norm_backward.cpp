// The PTX of kernels/norm_backward.cu against f64, over random rows.
//
//     norm_backward PTX_FILE SHAPES SEED
//
// The bound, u = 2^-24, to first order and doubled for the rest. A thread adds at most 4 ceil(columns / 512) terms, or ceil(columns
// / 128), lanes and warps 8 more: with t terms the sum of squares is right to (t + 8) u relative, inverse to i = (t / 2 + 8) u
// with half of quotient and epsilon, root and inverse, and along to (t + 9) u a, a = sum |scale d_y x|. d_x has inverse |scale d_y| (i + 3 u) +
// inverse^3 / columns |x| (|along| (3 i + 5 u) + (t + 9) u a), and u |d_x| where it is added to what is there. A term of d_scale is
// right to i + 2 u, and at most 16 are added: sum |term| (i + 18 u). A sum of n rows is right to (ceil(n / 4) + 4) u of the sum of
// absolute values.

#include <algorithm>

#include "check.hpp"

namespace {

struct Rows {
    int rows, columns;
    bool adds, scales;
    float epsilon;
    std::vector<float> x, d_y, before, scale;
};

struct Answers {
    std::vector<float> d_x, parts;
};

double worst = 0.0;
size_t elements = 0;

bool same(const float* a, const float* b, size_t count) { return std::memcmp(a, b, count * 4) == 0; }

void compare(const std::string& what, double found, double exact, double bound) {
    const double error = std::fabs(found - exact), limit = 2.0 * bound + 0x1p-126;
    if (!(error <= limit)) wrong(what + ": " + std::to_string(found) + " for " + std::to_string(exact));
    worst = std::max(worst, error / limit);
    ++elements;
}

Rows draw(Random& random, int index) {
    // Each way of the kernel: one, two, four and eight pieces a thread, longer rows, and rows that are no pieces.
    static const int columns[] = {1, 4, 33, 64, 130, 512, 516, 576, 1023, 1024, 1536, 2048, 2052, 3584, 4096, 4100};
    const int width = columns[index % 16], most = width > 1024 ? 20 : 40;
    Rows rows{random.between(1, random.chance(0.5) ? 3 : most), width, random.chance(0.5), random.chance(0.8), random.chance(0.5) ? 1e-5f : 1e-6f, {}, {}, {}, {}};
    const size_t count = static_cast<size_t>(rows.rows) * width;
    const float offset = random.chance(0.3) ? 3.0f : 0.0f;
    for (size_t i = 0; i < count; ++i) {
        rows.x.push_back(offset + random.normal()), rows.d_y.push_back(offset + random.normal()), rows.before.push_back(random.normal());
    }
    for (int i = 0; i < width; ++i) rows.scale.push_back(1.0f + 0.3f * random.normal());
    return rows;
}

Answers ask(ptx::Machine& machine, const Rows& rows, ptx::Schedule schedule) {
    const int blocks = (rows.rows + 15) / 16;
    Answers answers{rows.adds ? rows.before : std::vector<float>(rows.x.size(), NAN), std::vector<float>(static_cast<size_t>(blocks) * rows.columns, NAN)};
    machine.forget();
    allow(machine, answers.d_x), allow(machine, answers.parts), allow(machine, rows.x), allow(machine, rows.d_y), allow(machine, rows.scale);
    machine.launch("rms_norm_backward", blocks, 1, 128, 0,
                   {answers.d_x.data(), rows.scales ? answers.parts.data() : static_cast<float*>(nullptr), rows.d_y.data(), rows.x.data(), rows.scale.data(), rows.rows,
                    rows.columns, rows.epsilon, rows.adds ? 1 : 0},
                   schedule);
    return answers;
}

// add_row_sums of `parts`, to what is there.
void sums_of_rows(ptx::Machine& machine, Random& random, const std::string& what, int columns) {
    const int rows = random.between(1, columns > 1024 ? 9 : 40);
    std::vector<float> parts(static_cast<size_t>(rows) * columns), before(columns), first;
    for (float& value : parts) value = random.normal();
    for (float& value : before) value = random.normal();
    for (ptx::Schedule schedule : {ptx::Schedule::FORWARD, ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
        std::vector<float> out(before);
        machine.forget();
        allow(machine, out), allow(machine, parts);
        machine.launch("add_row_sums", (columns + 127) / 128, 1, 128, 0, {out.data(), parts.data(), rows, columns}, schedule);
        if (first.empty()) first = out;
        if (!same(out.data(), first.data(), columns)) wrong(what + ", sums of rows: other bits in another schedule");
    }
    for (int c = 0; c < columns; ++c) {
        double exact = before[c], size = 0.0;
        for (int r = 0; r < rows; ++r) exact += parts[static_cast<size_t>(r) * columns + c], size += std::fabs(parts[static_cast<size_t>(r) * columns + c]);
        compare(what + ", sums of rows, column " + std::to_string(c), first[c], exact, F32_UNIT * (((rows + 3) / 4 + 4) * size + std::fabs(exact)));
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: norm_backward PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const Rows rows = draw(random, index);
        const int columns = rows.columns;
        const std::string what = "shape " + std::to_string(index) + " (" + std::to_string(rows.rows) + ", " + std::to_string(columns) + ")";
        const Answers answers = ask(machine, rows, ptx::Schedule::FORWARD);
        const double terms = columns % 4 == 0 ? 4 * ((columns + 511) / 512) : (columns + 127) / 128, u = F32_UNIT, i = (terms / 2 + 8) * u;
        std::vector<double> d_scale(answers.parts.size(), 0.0), sizes(answers.parts.size(), 0.0);
        for (int r = 0; r < rows.rows; ++r) {
            const size_t start = static_cast<size_t>(r) * columns, block = static_cast<size_t>(r / 16) * columns;
            double square = 0.0, along = 0.0, size = 0.0;
            for (int c = 0; c < columns; ++c) {
                const double x = rows.x[start + c], term = static_cast<double>(rows.scale[c]) * rows.d_y[start + c] * x;
                square += x * x, along += term, size += std::fabs(term);
            }
            const double inverse = 1.0 / std::sqrt(square / columns + rows.epsilon), cubed = inverse * inverse * inverse / columns;
            for (int c = 0; c < columns; ++c) {
                const double x = rows.x[start + c], d_y = rows.d_y[start + c], own = rows.scale[c] * d_y;
                const double exact = inverse * own - cubed * x * along + (rows.adds ? rows.before[start + c] : 0.0);
                const double bound = inverse * std::fabs(own) * (i + 3 * u) + cubed * std::fabs(x) * (std::fabs(along) * (3 * i + 5 * u) + (terms + 9) * u * size) +
                                     (rows.adds ? u * std::fabs(exact) : 0.0);
                compare(what + ", row " + std::to_string(r) + " column " + std::to_string(c), answers.d_x[start + c], exact, bound);
                d_scale[block + c] += d_y * x * inverse, sizes[block + c] += std::fabs(d_y * x * inverse);
            }
        }
        for (size_t at = 0; at < d_scale.size(); ++at) {
            if (rows.scales) compare(what + ", scale " + std::to_string(at), answers.parts[at], d_scale[at], sizes[at] * (i + 18 * u));
            else if (!std::isnan(answers.parts[at])) wrong(what + ": a gradient of the scale that nobody asked for");
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            const Answers again = ask(machine, rows, schedule);
            if (!same(again.d_x.data(), answers.d_x.data(), answers.d_x.size()) || !same(again.parts.data(), answers.parts.data(), answers.parts.size()))
                wrong(what + ": other bits in another schedule");
        }
        // The last row alone, and after some that are not a number: the same bits.
        const size_t last = static_cast<size_t>(rows.rows - 1) * columns;
        for (int spoilt : {0, random.between(1, 3)}) {
            Rows other = rows;
            other.rows = 1 + spoilt;
            const size_t from = static_cast<size_t>(spoilt) * columns;
            for (auto member : {&Rows::x, &Rows::d_y, &Rows::before}) {
                (other.*member).assign(from, NAN);
                (other.*member).insert((other.*member).end(), (rows.*member).begin() + last, (rows.*member).end());
            }
            if (!same(&ask(machine, other, ptx::Schedule::FORWARD).d_x[from], &answers.d_x[last], columns)) wrong(what + ": other bits in another batch");
        }
        sums_of_rows(machine, random, what, columns);
    }
    std::printf("norm_backward: %d shapes, %zu elements against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, elements, worst,
                static_cast<double>(machine.steps));
}
