// The PTX of kernels/packed_attention_backward.cu against an f64 reference, over random prefix trees.
//
//     packed_attention_backward PTX_FILE SHAPES SEED
//
// Each shape is a forest of segments. Either every token asks, from its row among the keys, or some sequences' last tokens do,
// one row a sequence, as in a model's last layer: then some keys have no reader. Both kernels run one after the other in three
// schedules, which must give the same bits, and once with segments, tiles and key tiles laid and cut otherwise, where the
// gradients of queries must have the same bits. Rows that are nobody's hold NaN, and may be neither read nor written. The reference
// itself is compared with differences of the f64 forward pass.
//
// The bound. Let u = 2^-24 and b = 2^-8 (bf16); n keys are seen. Against exact arithmetic on the same bf16 inputs, `out` among them:
//   scores      a dot product of head_dim exact products in f32 is off by at most (head_dim + 2) u S with
//               S = scale * sum |q| |k|. The cap has a slope of at most 1, and is off by 8 u soft_cap itself: together e.
//   log-sum     e, the exponents 6 u |c - max| and exp2 2 u; its sum's roundings, one a key and one a piece; the logarithm and
//               what it is added to 8 u (|max| + |log_sum| + 1).
//   weights p   in the first kernel e + 6 u |c - max| + 2 u for the exponential and again for the sum; in the second
//               e + 8 u (|c| + |log_sum|) + 2 u and the log-sum's. Let w be that, relative.
//   ds          d_out . v and along are off by (head_dim + 2) u T and E, T = sum |d_out| |v| and E = sum |d_out| |out|;
//               the slope of the cap by 2 e / soft_cap + 4 u: w |ds| + p (T + E) ((head_dim + 8) u + 2 e / soft_cap).
//   products    p and ds are rounded to bf16: b p, b |ds|; one rounding a term, and one a piece: (terms + pieces + 8) u.
// and the products of two such terms, for which the bf16 terms are taken 2^-6 larger. d_k and d_v add these over their readers.

#include <algorithm>

#include "forest.hpp"

namespace {

struct Key_tile { int row, keys, position, zero; };

// The last token of a sequence that asks: of a segment.
struct Asked { int segment, index; };

struct Question {
    Forest forest;
    std::vector<Asked> asked;
    bool all;  // every token asks, from its own row
    std::vector<int> starts;  // of each segment's tokens, in their numbering

    explicit Question(Random& random, Forest grown) : forest(std::move(grown)), all(random.chance(0.6)) {
        starts.push_back(0);
        for (const Segment& segment : forest) starts.push_back(starts.back() + segment.tokens.size());
        for (int s = 0; s < static_cast<int>(forest.size()); ++s) {
            const int tokens = forest[s].tokens.size();
            if (!all && random.chance(0.4)) asked.push_back({s, random.chance(0.7) ? tokens - 1 : random.between(0, tokens - 1)});
            for (int i = 0; all && i < tokens; ++i) asked.push_back({s, i});
        }
        // Two sequences may be the same.
        if (asked.empty()) asked = {{0, 0}, {0, 0}};
    }

    bool goes_through(int segment, int ancestor) const {
        while (segment >= 0 && segment != ancestor) segment = forest[segment].parent;
        return segment == ancestor;
    }
    // The tokens at positions 0 to the query's, by number.
    std::vector<int> seen(const Asked& query) const {
        std::vector<int> path, numbers;
        for (int s = query.segment; s >= 0; s = forest[s].parent) path.push_back(s);
        for (auto s = path.rbegin(); s != path.rend(); ++s) {
            const int tokens = *s == query.segment ? query.index + 1 : forest[*s].tokens.size();
            for (int i = 0; i < tokens; ++i) numbers.push_back(starts[*s] + i);
        }
        return numbers;
    }
};

enum Which { Q, K, V, D_OUT };

// All tokens' vectors in f64, each by number.
struct Values {
    std::vector<double> of[4];
    size_t columns[4];
    Values(const Shape& shape, const Question& question) {
        for (int which = 0; which < 4; ++which) {
            columns[which] = shape.head_dim * shape.key_value_heads * (which == K || which == V ? 1 : shape.group);
            for (const Segment& segment : question.forest) {
                for (uint64_t token : segment.tokens) {
                    for (size_t c = 0; c < columns[which]; ++c) of[which].push_back(from_bf16(to_bf16(value_of(shape, token, which, c))));
                }
            }
        }
    }
    const double* row(int which, int number, int head, int head_dim) const { return &of[which][number * columns[which] + head * head_dim]; }
};

// One (query, head)'s scores and weights.
struct Attention {
    std::vector<double> scores, weights;
    double size = 0.0, highest = -INFINITY, lowest = INFINITY, log_sum = 0.0;
    std::vector<double> out;
};

Attention attend(const Shape& shape, const Values& values, const std::vector<int>& numbers, int head) {
    const int count = numbers.size(), first = shape.window > 0 ? std::max(0, count - shape.window) : 0, kv = head / shape.group;
    const double* q = values.row(Q, numbers.back(), head, shape.head_dim);
    Attention made;
    made.out.resize(shape.head_dim);
    for (int j = first; j < count; ++j) {
        const double* k = values.row(K, numbers[j], kv, shape.head_dim);
        double dot = 0.0, absolute = 0.0;
        for (int c = 0; c < shape.head_dim; ++c) dot += q[c] * k[c], absolute += std::fabs(q[c] * k[c]);
        double score = dot * shape.scale;
        if (shape.soft_cap > 0.0f) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
        made.scores.push_back(score);
        made.size = std::max(made.size, absolute * shape.scale);
        made.highest = std::max(made.highest, score), made.lowest = std::min(made.lowest, score);
    }
    double total = 0.0;
    for (double score : made.scores) total += std::exp(score - made.highest);
    made.log_sum = made.highest + std::log(total);
    for (int j = first; j < count; ++j) {
        made.weights.push_back(std::exp(made.scores[j - first] - made.log_sum));
        const double* v = values.row(V, numbers[j], kv, shape.head_dim);
        for (int c = 0; c < shape.head_dim; ++c) made.out[c] += made.weights.back() * v[c];
    }
    return made;
}

struct Bounded {
    std::vector<double> values, bounds;
    void resize(size_t size) { values.assign(size, 0.0), bounds.assign(size, 1e-30); }
    void add(size_t at, double value, double bound) { values[at] += value, bounds[at] += bound; }
};

struct Reference {
    Bounded d_q, log_sum, along;  // by query
    Bounded d_k, d_v;             // by token
    std::vector<uint16_t> out;    // by query
};

// `exact`: with the output as it is before its rounding.
Reference reference(const Shape& shape, const Question& question, const Values& values, bool exact) {
    const int heads = shape.group * shape.key_value_heads, head_dim = shape.head_dim;
    constexpr double U = F32_UNIT, ROUNDED = BF16_UNIT * (1.0 + 0x1p-6);
    const double capped = shape.soft_cap > 0.0f;
    Reference made;
    made.d_q.resize(question.asked.size() * heads * head_dim);
    made.log_sum.resize(question.asked.size() * heads), made.along.resize(question.asked.size() * heads);
    made.d_k.resize(values.of[K].size()), made.d_v.resize(values.of[V].size());
    made.out.resize(made.d_q.values.size());
    const double readers = question.asked.size() * shape.group;  // terms of a sum over queries, at most
    for (size_t query = 0; query < question.asked.size(); ++query) {
        const std::vector<int> numbers = question.seen(question.asked[query]);
        for (int head = 0; head < heads; ++head) {
            const Attention attention = attend(shape, values, numbers, head);
            const double count = attention.scores.size();
            const int first = numbers.size() - attention.scores.size(), kv = head / shape.group;
            const double* q = values.row(Q, numbers.back(), head, head_dim);
            const double* d_out = values.row(D_OUT, numbers.back(), head, head_dim);
            const size_t at = query * heads + head;
            double along = 0.0, along_size = 0.0;
            for (int c = 0; c < head_dim; ++c) {
                const uint16_t rounded = made.out[at * head_dim + c] = to_bf16(attention.out[c]);
                const double product = d_out[c] * (exact ? attention.out[c] : from_bf16(rounded));
                along += product, along_size += std::fabs(product);
            }
            const double of_scores = (head_dim + 2) * U * attention.size + 8.0 * U * shape.soft_cap;
            const double of_exponentials = of_scores + 6.0 * U * (attention.highest - attention.lowest) + 2.0 * U;
            const double of_sum = (count + count / 32 + 4) * U;
            const double most = std::max(std::fabs(attention.highest), std::fabs(attention.lowest)) + std::fabs(attention.log_sum) + 1.0;
            const double of_log_sum = of_exponentials + of_sum + 8.0 * U * most;
            const double first_weights = 2.0 * of_exponentials + of_sum;
            const double second_weights = of_scores + 8.0 * U * most + 2.0 * U + of_log_sum;
            const double of_slope = capped ? 2.0 * of_scores / shape.soft_cap : 0.0;
            made.log_sum.add(at, attention.log_sum, of_log_sum);
            made.along.add(at, along, (head_dim + 2) * U * along_size);
            for (size_t j = 0; j < attention.scores.size(); ++j) {
                const int number = numbers[first + j];
                const double* k = values.row(K, number, kv, head_dim);
                const double* v = values.row(V, number, kv, head_dim);
                const double weight = attention.weights[j];
                double d_weight = 0.0, size = 0.0;
                for (int c = 0; c < head_dim; ++c) d_weight += d_out[c] * v[c], size += std::fabs(d_out[c] * v[c]);
                const double ratio = capped ? attention.scores[j] / shape.soft_cap : 0.0;
                const double d_score = weight * (d_weight - along) * (1.0 - ratio * ratio) * shape.scale;
                const double of_d_score = shape.scale * weight * (size + along_size) * ((head_dim + 8) * U + of_slope);
                const double terms = ROUNDED + (count + count / 32 + 8) * U, reader_terms = ROUNDED + (2.0 * readers + 8) * U;
                const double in_query = std::fabs(d_score) * (terms + first_weights) + of_d_score;
                const double in_key = std::fabs(d_score) * (reader_terms + second_weights) + of_d_score;
                const double in_value = weight * (reader_terms + second_weights);
                const size_t key = number * values.columns[K] + kv * head_dim;
                for (int c = 0; c < head_dim; ++c) {
                    made.d_q.add(at * head_dim + c, d_score * k[c], in_query * std::fabs(k[c]));
                    made.d_k.add(key + c, d_score * q[c], in_key * std::fabs(q[c]));
                    made.d_v.add(key + c, weight * d_out[c], in_value * std::fabs(d_out[c]));
                }
            }
        }
    }
    return made;
}

// Compares the reference with central differences of sum d_out . out, along each kind of input by turns.
void check_reference(const Shape& shape, const Question& question, Values values, Random& random, const std::string& what) {
    const Reference exact = reference(shape, question, values, true);
    const int heads = shape.group * shape.key_value_heads, head_dim = shape.head_dim;
    auto loss = [&] {
        double sum = 0.0;
        for (const Asked& query : question.asked) {
            const std::vector<int> numbers = question.seen(query);
            for (int head = 0; head < heads; ++head) {
                const Attention attention = attend(shape, values, numbers, head);
                const double* d_out = values.row(D_OUT, numbers.back(), head, head_dim);
                for (int c = 0; c < head_dim; ++c) sum += d_out[c] * attention.out[c];
            }
        }
        return sum;
    };
    for (int which : {Q, K, V}) {
        // A query's own token: who asks twice has a gradient for each.
        const size_t query = random.between(0, question.asked.size() - 1);
        const std::vector<int> numbers = question.seen(question.asked[query]);
        const int number = which == Q ? numbers.back() : numbers[random.between(0, numbers.size() - 1)];
        const int column = random.between(0, values.columns[which] - 1);
        double expected = 0.0;
        for (size_t other = 0; which == Q && other < question.asked.size(); ++other) {
            if (question.seen(question.asked[other]).back() == number) expected += exact.d_q.values[other * heads * head_dim + column];
        }
        if (which != Q) expected = (which == K ? exact.d_k : exact.d_v).values[number * values.columns[which] + column];
        double& moved = values.of[which][number * values.columns[which] + column];
        const double kept = moved, step = 1e-4;
        moved = kept + step;
        const double above = loss();
        moved = kept - step;
        const double below = loss();
        moved = kept;
        const double difference = (above - below) / (2.0 * step);
        if (!(std::fabs(difference - expected) <= 1e-6 * (1.0 + std::fabs(expected)))) {
            wrong(what + ": the reference is " + std::to_string(expected) + ", the difference " + std::to_string(difference));
        }
    }
}

// Kernels' results, by query and by token as the reference has them.
struct Gradients {
    std::vector<float> d_q, log_sum, along, d_k, d_v;
};

// Takes rows out of a matrix, and expects all else to be as it was.
std::vector<float> taken(const std::vector<float>& matrix, int stride, int columns, const std::vector<int>& rows, float untouched) {
    std::vector<float> made;
    std::vector<bool> used(matrix.size());
    for (int row : rows) {
        for (int c = 0; c < columns; ++c) {
            const size_t at = static_cast<size_t>(row) * stride + c;
            made.push_back(matrix[at]);
            used[at] = true;
        }
    }
    for (size_t i = 0; i < matrix.size(); ++i) {
        if (!used[i] && std::memcmp(&matrix[i], &untouched, 4) != 0) wrong("an element that is nobody's was written");
    }
    return made;
}

// Lays segments and queries in rows, cuts tiles and runs both kernels; `shuffled`: in random order, cut at random.
Gradients run(ptx::Machine& machine, const Shape& shape, const Question& question, const std::vector<uint16_t>& out_of, Random& random,
              ptx::Schedule schedule, bool shuffled) {
    Forest forest = question.forest;
    const int heads = shape.group * shape.key_value_heads, segments = forest.size();
    std::vector<int> order(segments);
    for (int i = 0; i < segments; ++i) order[i] = i;
    if (shuffled) std::shuffle(order.begin(), order.end(), random.engine);
    int rows = 1;
    for (int index : order) {
        forest[index].row = rows;
        rows += forest[index].tokens.size() + 1;
    }
    std::vector<int> token_rows;
    for (const Segment& segment : forest) {
        for (size_t i = 0; i < segment.tokens.size(); ++i) token_rows.push_back(segment.row + i);
    }
    // Where only some ask, every other row is one of theirs.
    std::vector<int> query_rows(question.asked.size());
    for (size_t i = 0; i < query_rows.size(); ++i) query_rows[i] = 2 * i + 1;
    if (shuffled) std::shuffle(query_rows.begin(), query_rows.end(), random.engine);
    for (size_t i = 0; question.all && i < query_rows.size(); ++i) query_rows[i] = forest[question.asked[i].segment].row + question.asked[i].index;
    const int asking_rows = question.all ? rows : 2 * static_cast<int>(query_rows.size()) + 1;

    // Queries, keys and values of a row lie side by side, as a fused projection leaves them; or queries lie apart.
    const int q_columns = heads * shape.head_dim, columns = shape.key_value_heads * shape.head_dim;
    const int stride = q_columns + 2 * columns + 8, out_stride = q_columns + 8, d_q_stride = q_columns + 4, d_stride = columns + 4;
    const int q_stride = question.all ? stride : q_columns + 16;
    std::vector<uint16_t> fused(static_cast<size_t>(rows) * stride, BF16_NAN);
    std::vector<uint16_t> apart(question.all ? 0 : static_cast<size_t>(asking_rows) * q_stride, BF16_NAN);
    std::vector<uint16_t> d_out(static_cast<size_t>(asking_rows) * out_stride, BF16_NAN), out = d_out;
    for (const Segment& segment : forest) {
        for (size_t i = 0; i < segment.tokens.size(); ++i) {
            uint16_t* row = &fused[(segment.row + i) * stride];
            for (int c = 0; c < columns; ++c) row[q_columns + c] = to_bf16(value_of(shape, segment.tokens[i], K, c));
            for (int c = 0; c < columns; ++c) row[q_columns + columns + c] = to_bf16(value_of(shape, segment.tokens[i], V, c));
        }
    }
    uint16_t* const queries = question.all ? fused.data() : apart.data();
    for (size_t i = 0; i < query_rows.size(); ++i) {
        const uint64_t token = forest[question.asked[i].segment].tokens[question.asked[i].index];
        for (int c = 0; c < q_columns; ++c) {
            queries[static_cast<size_t>(query_rows[i]) * q_stride + c] = to_bf16(value_of(shape, token, Q, c));
            d_out[static_cast<size_t>(query_rows[i]) * out_stride + c] = to_bf16(value_of(shape, token, D_OUT, c));
            out[static_cast<size_t>(query_rows[i]) * out_stride + c] = out_of[i * q_columns + c];
        }
    }

    std::vector<Tile> tiles;
    std::vector<Key_tile> key_tiles;
    std::vector<int> key_segments, path_starts{0}, reader_starts{0}, readers;
    std::vector<Stretch> stretches;
    const int limit = 64 / shape.group;
    for (int index = 0; index < segments; ++index) {
        std::vector<int> path;
        for (int s = index; s >= 0; s = forest[s].parent) path.push_back(s);
        for (auto s = path.rbegin(); s != path.rend(); ++s) stretches.push_back({forest[*s].row, forest[*s].first_position});
        path_starts.push_back(stretches.size());
        const int length = forest[index].tokens.size(), first = forest[index].first_position;
        for (int done = 0, count; question.all && done < length; done += count) {
            count = std::min(length - done, shuffled ? random.between((limit + 1) / 2, limit) : limit);
            tiles.push_back({forest[index].row + done, count, first + done, index});
        }
        for (int done = 0, count; done < length; done += count) {
            count = std::min(length - done, shuffled ? random.between(24, 64) : 64);
            key_tiles.push_back({forest[index].row + done, count, first + done, 0});
            key_segments.push_back(index);
        }
    }
    for (size_t i = 0; !question.all && i < question.asked.size(); ++i) {
        const Asked& query = question.asked[i];
        tiles.push_back({query_rows[i], 1, forest[query.segment].first_position + query.index, query.segment});
    }
    if (shuffled) std::shuffle(tiles.begin(), tiles.end(), random.engine);
    for (size_t t = 0; t < key_tiles.size(); ++t) {
        for (size_t i = 0; i < tiles.size(); ++i) {
            const bool reads = question.goes_through(tiles[i].path, key_segments[t]);
            if (reads && tiles[i].position + tiles[i].queries - 1 >= key_tiles[t].position) readers.push_back(i);
        }
        reader_starts.push_back(readers.size());
    }

    const float untouched = 12345.5f, nobody = NAN;
    std::vector<float> d_q(static_cast<size_t>(asking_rows) * d_q_stride, untouched);
    std::vector<float> log_sum(static_cast<size_t>(asking_rows) * heads, nobody), along = log_sum;
    std::vector<float> d_k(static_cast<size_t>(rows) * d_stride, untouched), d_v = d_k;
    machine.forget();
    allow(machine, fused), allow(machine, apart), allow(machine, d_out), allow(machine, out), allow(machine, tiles), allow(machine, key_tiles);
    allow(machine, path_starts), allow(machine, reader_starts), allow(machine, readers), allow(machine, stretches);
    allow(machine, d_q), allow(machine, log_sum), allow(machine, along), allow(machine, d_k), allow(machine, d_v);
    const uint16_t* k = fused.data() + q_columns;
    const uint16_t* v = k + columns;
    const size_t shared = 512 * (shape.head_dim + 8);
    machine.launch("packed_attention_backward_queries_" + std::to_string(shape.head_dim), tiles.size(), shape.key_value_heads, 128, shared,
                   {d_q.data(), log_sum.data(), along.data(), d_out.data(), out.data(), queries, k, v, tiles.data(), path_starts.data(),
                    stretches.data(), d_q_stride, out_stride, q_stride, stride, shape.group, shape.window, shape.scale, shape.soft_cap},
                   schedule);
    machine.launch("packed_attention_backward_keys_" + std::to_string(shape.head_dim), key_tiles.size(), shape.key_value_heads, 128, shared,
                   {d_k.data(), d_v.data(), log_sum.data(), along.data(), d_out.data(), queries, k, v, key_tiles.data(), reader_starts.data(),
                    readers.data(), tiles.data(), d_stride, out_stride, q_stride, stride, shape.group, shape.window, shape.scale, shape.soft_cap},
                   schedule);
    return {taken(d_q, d_q_stride, q_columns, query_rows, untouched), taken(log_sum, heads, heads, query_rows, nobody),
            taken(along, heads, heads, query_rows, nobody), taken(d_k, d_stride, columns, token_rows, untouched),
            taken(d_v, d_stride, columns, token_rows, untouched)};
}

double compare(const Bounded& expected, const std::vector<float>& values, const std::string& what) {
    double worst = 0.0;
    for (size_t i = 0; i < values.size(); ++i) {
        const double error = std::fabs(values[i] - expected.values[i]);
        if (!(error <= expected.bounds[i])) wrong(what + ": element " + std::to_string(i) + " is " + std::to_string(values[i]) + ", not "
                                                  + std::to_string(expected.values[i]) + ", bound " + std::to_string(expected.bounds[i]));
        worst = std::max(worst, error / expected.bounds[i]);
    }
    return worst;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: packed_attention_backward PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    double worst[5] = {};
    size_t queries = 0, tokens = 0, unread = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        static const int head_dims[] = {16, 32, 48, 64, 80, 96, 128};
        Shape shape{};
        shape.head_dim = head_dims[index % 7];
        // Some paths of more than two blocks of keys, some large groups; few rows with either.
        const bool lengthy = index % 4 == 1, wide = index % 11 == 10;
        shape.group = lengthy ? 1 : wide ? random.between(9, 64) : index / 2 % 5 + 1;
        shape.key_value_heads = !lengthy && shape.group < 4 ? random.between(1, 2) : 1;
        shape.window = random.chance(lengthy ? 0.6 : 0.4) ? random.between(1, 80) : 0;
        shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
        shape.soft_cap = random.chance(0.4) ? random.between(1, 50) : 0.0f;
        shape.spread = random.chance(0.3) ? 6.0f : 1.7f;
        Forest forest;
        auto longest = [&] {
            int tokens = 0;
            for (const Segment& segment : forest) tokens = std::max(tokens, segment.first_position + static_cast<int>(segment.tokens.size()));
            return tokens;
        };
        do forest = grow(random, lengthy ? 129 : wide ? 17 : random.chance(0.2) ? 65 : 31);
        while (lengthy && (longest() < 129 || forest.size() > 3));
        const Question question(random, std::move(forest));
        const std::string what = "shape " + std::to_string(index) + " (head_dim " + std::to_string(shape.head_dim) + ", group "
                               + std::to_string(shape.group) + ", window " + std::to_string(shape.window) + ", cap "
                               + std::to_string(shape.soft_cap) + ", " + std::to_string(question.asked.size()) + " queries)";
        const Values values(shape, question);
        if (index % 8 == 0) check_reference(shape, question, values, random, what);
        const Reference expected = reference(shape, question, values, false);
        auto check = [&](const Gradients& got, const std::string& how) {
            worst[0] = std::max(worst[0], compare(expected.d_q, got.d_q, what + ": d_q" + how));
            worst[1] = std::max(worst[1], compare(expected.log_sum, got.log_sum, what + ": log_sum" + how));
            worst[2] = std::max(worst[2], compare(expected.along, got.along, what + ": along" + how));
            worst[3] = std::max(worst[3], compare(expected.d_k, got.d_k, what + ": d_k" + how));
            worst[4] = std::max(worst[4], compare(expected.d_v, got.d_v, what + ": d_v" + how));
        };
        const Gradients first = run(machine, shape, question, expected.out, random, ptx::Schedule::FORWARD, false);
        check(first, "");
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            const Gradients other = run(machine, shape, question, expected.out, random, schedule, false);
            if (!same_bits(other.d_q, first.d_q) || !same_bits(other.log_sum, first.log_sum) || !same_bits(other.along, first.along)
                || !same_bits(other.d_k, first.d_k) || !same_bits(other.d_v, first.d_v)) wrong(what + ": other bits in another schedule");
        }
        const Gradients moved = run(machine, shape, question, expected.out, random, ptx::Schedule::TOGETHER, true);
        check(moved, " in another order");
        if (!same_bits(moved.d_q, first.d_q) || !same_bits(moved.log_sum, first.log_sum) || !same_bits(moved.along, first.along)) {
            wrong(what + ": other bits in another order");
        }
        queries += question.asked.size(), tokens += question.starts.back();
        const size_t columns = values.columns[K];
        for (size_t i = 0; i < first.d_v.size(); i += columns) {
            unread += std::all_of(&first.d_v[i], &first.d_v[i] + columns, [](float value) { return value == 0.0f; });
        }
    }
    std::printf("packed_attention_backward: %d shapes, %zu queries, %zu keys (%zu that nobody sees) against f64: worst error of the bound d_q %.3g, "
                "log_sum %.3g, along %.3g, d_k %.3g, d_v %.3g; %.3g instructions\n", shapes, queries, tokens, unread, worst[0], worst[1], worst[2],
                worst[3], worst[4], static_cast<double>(machine.steps));
}
