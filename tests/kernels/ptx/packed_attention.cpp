// The PTX of kernels/packed_attention.cu against an f64 reference, over random prefix trees.
//
//     packed_attention PTX_FILE SHAPES SEED
//
// Each shape is a forest of segments, up to three deep, read in several ways that must give the same bits for every
// token of every sequence: shared prefixes in three schedules, segments in another order of rows and tiles cut
// elsewhere, every sequence whole, and one sequence alone. Rows between the segments hold NaN: nothing may
// read them.
//
// The bound. Let a = sum w |v| be the weighted size of the values, u = 2^-24 and b = 2^-8 (bf16). Against exact
// arithmetic on the same bf16 inputs:
//   output      its rounding to bf16: b |out|
//   weights     each rounded to bf16 before the product: b a
//   scores      a dot product of head_dim exact products in f32 is off by at most (head_dim + 2) u S with
//               S = scale * sum |q| |k|; that enters a weight and their sum: 2 (head_dim + 2) u S a. The cap has a
//               slope of at most 1, and is off by 8 u soft_cap itself.
//   exponent    (s - max) log2(e) has three roundings: 2 * 3 u |s - max|, exp2 has 2 u more, twice.
//   sums        one rounding a key and one a block of keys, for the sum and the weights: 2 (n + n / 64 + 4) u a
// and the products of two such terms, for which the bf16 terms are taken 2^-7 larger.

#include <algorithm>

#include "forest.hpp"

namespace {

struct Output {
    std::vector<uint16_t> values;  // [rows, heads * head_dim]
    int stride;
    const uint16_t* row(int r) const { return &values[static_cast<size_t>(r) * stride]; }
};

// Lays a forest's segments in `order`, cuts tiles at random and runs the kernel.
Output run(ptx::Machine& machine, const Shape& shape, Forest& forest, Random& random, ptx::Schedule schedule, bool shuffled) {
    const int heads = shape.group * shape.key_value_heads;
    const int gap = 1;
    std::vector<int> order(forest.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (shuffled) std::shuffle(order.begin(), order.end(), random.engine);
    int rows = gap;
    for (int index : order) {
        forest[index].row = rows;
        rows += forest[index].tokens.size() + gap;
    }
    // Queries, keys and values of a row lie side by side, as a fused projection leaves them.
    const int q_columns = heads * shape.head_dim, columns = shape.key_value_heads * shape.head_dim;
    const int stride = q_columns + 2 * columns + 8;
    std::vector<uint16_t> fused(static_cast<size_t>(rows) * stride, BF16_NAN);
    for (const Segment& segment : forest) {
        for (size_t i = 0; i < segment.tokens.size(); ++i) {
            uint16_t* row = &fused[(segment.row + i) * stride];
            for (int c = 0; c < q_columns; ++c) row[c] = to_bf16(value_of(shape, segment.tokens[i], 0, c));
            for (int c = 0; c < columns; ++c) row[q_columns + c] = to_bf16(value_of(shape, segment.tokens[i], 1, c));
            for (int c = 0; c < columns; ++c) row[q_columns + columns + c] = to_bf16(value_of(shape, segment.tokens[i], 2, c));
        }
    }
    std::vector<Tile> tiles;
    std::vector<int> path_starts{0};
    std::vector<Stretch> stretches;
    for (size_t index = 0; index < forest.size(); ++index) {
        std::vector<int> path;
        for (int s = index; s >= 0; s = forest[s].parent) path.push_back(s);
        for (auto s = path.rbegin(); s != path.rend(); ++s) stretches.push_back({forest[*s].row, forest[*s].first_position});
        path_starts.push_back(stretches.size());
        const int length = forest[index].tokens.size(), limit = 64 / shape.group;
        for (int done = 0; done < length;) {
            const int queries = std::min(length - done, shuffled ? random.between(1, limit) : limit);
            tiles.push_back({forest[index].row + done, queries, forest[index].first_position + done, static_cast<int>(index)});
            done += queries;
        }
    }
    if (shuffled) std::shuffle(tiles.begin(), tiles.end(), random.engine);
    Output out{std::vector<uint16_t>(static_cast<size_t>(rows) * q_columns, 0x1234), q_columns};
    machine.forget();
    allow(machine, fused), allow(machine, tiles), allow(machine, path_starts), allow(machine, stretches), allow(machine, out.values);
    const size_t shared = 2 * 2 * 64 * (shape.head_dim + 8) * 2;
    machine.launch("packed_attention_" + std::to_string(shape.head_dim), tiles.size(), shape.key_value_heads, 128, shared,
                   {out.values.data(), fused.data(), fused.data() + q_columns, fused.data() + q_columns + columns, tiles.data(),
                    path_starts.data(), stretches.data(), out.stride, stride, stride, shape.group, shape.window, shape.scale,
                    shape.soft_cap},
                   schedule);
    for (int r = 0; r < rows; ++r) {
        const bool used = std::any_of(forest.begin(), forest.end(), [&](const Segment& s) {
            return r >= s.row && r < s.row + static_cast<int>(s.tokens.size());
        });
        for (int c = 0; !used && c < q_columns; ++c) {
            if (out.row(r)[c] != 0x1234) wrong("a row that holds no query was written");
        }
    }
    return out;
}

struct Worst {
    double of_bound = 0.0, relative = 0.0;
};

void compare(const Shape& shape, const Text& text, const uint16_t* out, Worst& worst, const std::string& what) {
    const int position = text.size() - 1;
    const int first = shape.window > 0 ? std::max(0, position - shape.window + 1) : 0;
    const int count = position + 1 - first;
    auto at = [&](int p, int which, int channel) -> double { return from_bf16(to_bf16(value_of(shape, text[p], which, channel))); };
    std::vector<double> scores(count);
    for (int head = 0; head < shape.group * shape.key_value_heads; ++head) {
        const int kv = head / shape.group;
        double size = 0.0, highest = -INFINITY, lowest = INFINITY, total = 0.0;
        std::vector<double> q(shape.head_dim);
        for (int c = 0; c < shape.head_dim; ++c) q[c] = at(position, 0, head * shape.head_dim + c);
        for (int j = 0; j < count; ++j) {
            double dot = 0.0, absolute = 0.0;
            for (int c = 0; c < shape.head_dim; ++c) {
                const double product = q[c] * at(first + j, 1, kv * shape.head_dim + c);
                dot += product, absolute += std::fabs(product);
            }
            size = std::max(size, absolute * shape.scale);
            scores[j] = dot * shape.scale;
            if (shape.soft_cap > 0.0f) scores[j] = shape.soft_cap * std::tanh(scores[j] / shape.soft_cap);
            highest = std::max(highest, scores[j]);
            lowest = std::min(lowest, scores[j]);
        }
        for (double& score : scores) total += score = std::exp(score - highest);
        const double in_weights = 2.0 * (shape.head_dim + 2) * F32_UNIT * size + 16.0 * F32_UNIT * shape.soft_cap
                                + 6.0 * F32_UNIT * (highest - lowest) + 4.0 * F32_UNIT + 2.0 * (count + count / 64 + 4) * F32_UNIT;
        for (int c = 0; c < shape.head_dim; ++c) {
            double exact = 0.0, absolute = 0.0;
            for (int j = 0; j < count; ++j) {
                const double term = scores[j] / total * at(first + j, 2, kv * shape.head_dim + c);
                exact += term, absolute += std::fabs(term);
            }
            const double error = std::fabs(from_bf16(out[head * shape.head_dim + c]) - exact);
            const double rounding = BF16_UNIT * (1.0 + 0x1p-7);
            const double bound = rounding * std::fabs(exact) + (rounding + in_weights) * absolute;
            if (!(error <= bound)) wrong(what + ": position " + std::to_string(position) + " head " + std::to_string(head) + " is off by "
                                         + std::to_string(error) + ", bound " + std::to_string(bound));
            worst.of_bound = std::max(worst.of_bound, error / bound);
            worst.relative = std::max(worst.relative, error / absolute);
        }
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: packed_attention PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    Worst worst;
    size_t rows = 0, same = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        static const int head_dims[] = {16, 32, 48, 64, 80, 96, 128};
        Shape shape{};
        shape.head_dim = head_dims[index % 7];
        shape.group = index / 4 % 8 + 1;
        shape.key_value_heads = random.between(1, 2);
        shape.window = random.chance(0.4) ? random.between(1, 150) : 0;
        shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
        shape.soft_cap = random.chance(0.3) ? random.between(1, 50) : 0.0f;
        shape.spread = random.chance(0.3) ? 6.0f : 1.7f;
        Forest forest = grow(random);
        const std::string what = "shape " + std::to_string(index) + " (head_dim " + std::to_string(shape.head_dim) + ", group "
                               + std::to_string(shape.group) + ", window " + std::to_string(shape.window) + ", cap "
                               + std::to_string(shape.soft_cap) + ")";
        const Output out = run(machine, shape, forest, random, ptx::Schedule::FORWARD, false);
        const Forest laid = forest;
        for (size_t s = 0; s < laid.size(); ++s) {
            const Text text = text_through(laid, s);
            for (size_t i = 0; i < laid[s].tokens.size(); ++i) {
                // All of the first and last rows, and a sample of the others.
                if (i > 1 && i + 2 < laid[s].tokens.size() && !random.chance(0.15)) continue;
                const Text seen(text.begin(), text.begin() + laid[s].first_position + i + 1);
                compare(shape, seen, out.row(laid[s].row + i), worst, what);
                ++rows;
            }
        }
        auto expect_same = [&](const Output& other, int there, int here, int tokens, const std::string& how) {
            if (std::memcmp(other.row(there), out.row(here), static_cast<size_t>(tokens) * out.stride * 2) != 0) wrong(what + ": other bits " + how);
            same += tokens;
        };
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            if (out.values != run(machine, shape, forest, random, schedule, false).values) wrong(what + ": other bits in another schedule");
        }
        const Output moved = run(machine, shape, forest, random, ptx::Schedule::FORWARD, true);
        for (size_t s = 0; s < laid.size(); ++s) expect_same(moved, forest[s].row, laid[s].row, laid[s].tokens.size(), "in another order");
        // Every sequence whole, and the last one alone.
        Forest whole;
        for (size_t s = 0; s < laid.size(); ++s) whole.push_back({-1, 0, text_through(laid, s)});
        Forest alone{whole.back()};
        const Output apart = run(machine, shape, whole, random, ptx::Schedule::FORWARD, false);
        const Output lonely = run(machine, shape, alone, random, ptx::Schedule::FORWARD, false);
        for (size_t s = 0; s < laid.size(); ++s) {
            for (int part = s; part >= 0; part = laid[part].parent) {
                const int tokens = laid[part].tokens.size();
                expect_same(apart, whole[s].row + laid[part].first_position, laid[part].row, tokens, "with a prefix of its own");
                if (s + 1 == laid.size()) expect_same(lonely, alone[0].row + laid[part].first_position, laid[part].row, tokens, "alone");
            }
        }
    }
    std::printf("packed_attention: %d shapes, %zu rows against f64: worst error %.3g of the bound, %.3g relative to sum w|v|; %zu rows of "
                "the same bits elsewhere; %.3g instructions\n", shapes, rows, worst.of_bound, worst.relative, same, static_cast<double>(machine.steps));
}
