// The PTX of kernels/latent_distance.cu against f64 sums, over random sets.
//
//     latent_distance PTX_FILE SHAPES SEED
//
// The bound: a squared distance is a sum of `depth` squares, each with the rounding of its difference (twice, being
// squared) and one of each fused addition from there on: relative (depth + 2) u, u = 2^-24, and as much again in
// higher orders as (depth + 2)^2 u^2 gives. It is relative to the distance itself: all terms are positive.

#include <algorithm>

#include "check.hpp"

namespace {

struct Sets {
    int n, m, depth;
    std::vector<float> x, y;
};

Sets draw(Random& random, int index) {
    static const int sizes[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130};
    static const int depths[] = {1, 7, 8, 9, 16, 17, 64, 100, 128, 257, 512};
    Sets sets;
    sets.n = random.chance(0.7) ? sizes[random.between(0, 11)] : random.between(1, 200);
    sets.m = random.chance(0.7) ? sizes[random.between(0, 11)] : random.between(1, 200);
    sets.depth = depths[index % 11];
    // Far from the origin and close together now and then: what cancels in other formulas.
    const float origin = random.chance(0.3) ? 100.0f : 0.0f, spread = random.chance(0.3) ? 1e-3f : 1.0f;
    auto fill = [&](std::vector<float>& values, int rows) {
        values.resize(static_cast<size_t>(rows) * sets.depth);
        for (float& value : values) value = origin + spread * random.normal();
    };
    fill(sets.x, sets.n), fill(sets.y, sets.m);
    for (int copies = random.between(0, 5); copies > 0; --copies) {
        const int from = random.between(0, sets.n - 1), to = random.between(0, sets.m - 1);
        std::copy_n(&sets.x[static_cast<size_t>(from) * sets.depth], sets.depth, &sets.y[static_cast<size_t>(to) * sets.depth]);
    }
    return sets;
}

struct Answers {
    std::vector<float> distances;
    std::vector<uint32_t> near, open;
    std::vector<int> counts, open_counts;
    std::vector<unsigned long long> nearest;
    bool operator==(const Answers& other) const {
        return std::memcmp(distances.data(), other.distances.data(), distances.size() * 4) == 0 && near == other.near && open == other.open &&
               counts == other.counts && open_counts == other.open_counts && nearest == other.nearest;
    }
};

Answers ask(ptx::Machine& machine, const Sets& sets, float inner, float outer, ptx::Schedule schedule) {
    const int n = sets.n, m = sets.m, words = (m + 63) / 64 * 2;
    Answers answers{std::vector<float>(static_cast<size_t>(n) * m, NAN), std::vector<uint32_t>(static_cast<size_t>(n) * words, 0xa5a5a5a5),
                    std::vector<uint32_t>(static_cast<size_t>(n) * words, 0xa5a5a5a5), std::vector<int>(n), std::vector<int>(n),
                    std::vector<unsigned long long>(n, ~0ull)};
    machine.forget();
    allow(machine, sets.x), allow(machine, sets.y), allow(machine, answers.distances), allow(machine, answers.near), allow(machine, answers.open);
    allow(machine, answers.counts), allow(machine, answers.open_counts), allow(machine, answers.nearest);
    const unsigned across = (m + 127) / 128, down = (n + 127) / 128;
    machine.launch("latent_distances", across, down, 256, 0, {answers.distances.data(), sets.x.data(), sets.y.data(), n, m, sets.depth}, schedule);
    machine.launch("latent_neighbours", across, down, 256, 0,
                   {answers.near.data(), answers.open.data(), answers.counts.data(), answers.open_counts.data(), sets.x.data(), sets.y.data(),
                    n, m, sets.depth, inner, outer}, schedule);
    machine.launch("latent_nearest", across, down, 256, 0, {answers.nearest.data(), sets.x.data(), sets.y.data(), n, m, sets.depth}, schedule);
    return answers;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: latent_distance PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    double worst = 0.0, relative = 0.0;
    size_t pairs = 0, neighbours = 0, opens = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        Sets sets = draw(random, index);
        const int n = sets.n, m = sets.m, depth = sets.depth, words = (m + 63) / 64 * 2;
        const std::string what = "shape " + std::to_string(index) + " (" + std::to_string(n) + ", " + std::to_string(m) + ", " + std::to_string(depth) + ")";
        auto exact = [&](int i, int j) {
            double sum = 0.0;
            for (int c = 0; c < depth; ++c) {
                const double difference = static_cast<double>(sets.x[static_cast<size_t>(i) * depth + c]) - sets.y[static_cast<size_t>(j) * depth + c];
                sum += difference * difference;
            }
            return sum;
        };
        // A radius that a pair lies at, so that some are open.
        const double radius = exact(random.between(0, n - 1), random.between(0, m - 1));
        const double margin = (depth + 3) * F32_UNIT;
        const float inner = radius * (1.0 - margin) * (1.0 - F32_UNIT), outer = radius * (1.0 + margin) * (1.0 + F32_UNIT);
        const Answers answers = ask(machine, sets, inner, outer, ptx::Schedule::FORWARD);
        for (int i = 0; i < n; ++i) {
            int near = 0, open = 0;
            unsigned long long nearest = ~0ull;
            for (int j = 0; j < words * 32; ++j) {
                const bool is_near = answers.near[static_cast<size_t>(i) * words + j / 32] >> j % 32 & 1;
                const bool is_open = answers.open[static_cast<size_t>(i) * words + j / 32] >> j % 32 & 1;
                near += is_near, open += is_open;
                if (j >= m) {
                    if (is_near || is_open) wrong(what + ": a neighbour beyond the set");
                    continue;
                }
                const double value = exact(i, j);
                const float got = answers.distances[static_cast<size_t>(i) * m + j];
                const double error = std::fabs(got - value), bound = (depth + 2) * F32_UNIT * (1.0 + (depth + 2) * F32_UNIT) * value;
                if (!(error <= bound)) wrong(what + ": distance of " + std::to_string(i) + ", " + std::to_string(j));
                if (value > 0.0) worst = std::max(worst, error / bound), relative = std::max(relative, error / value);
                if (is_near != (got <= inner) || is_open != (got > inner && got <= outer)) wrong(what + ": wrong bits");
                if ((is_near && value > radius) || (!is_near && !is_open && value <= radius)) wrong(what + ": a pair on the wrong side of the radius");
                uint32_t bits;
                std::memcpy(&bits, &got, 4);
                nearest = std::min(nearest, static_cast<unsigned long long>(bits) << 32 | static_cast<unsigned>(j));
                ++pairs;
            }
            if (near != answers.counts[i] || open != answers.open_counts[i]) wrong(what + ": wrong counts");
            if (nearest != answers.nearest[i]) wrong(what + ": wrong nearest");
            neighbours += near, opens += open;
        }
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            if (index % 4 == 0 && !(answers == ask(machine, sets, inner, outer, schedule))) wrong(what + ": other bits in another schedule");
        }
        // Other rows around, in another order, with the sides exchanged: the same distances.
        if (index % 4 == 1) {
            std::vector<int> order(n);
            for (int i = 0; i < n; ++i) order[i] = i;
            std::shuffle(order.begin(), order.end(), random.engine);
            Sets other{m, n + 3, depth, sets.y, std::vector<float>(static_cast<size_t>(n + 3) * depth, 0.5f)};
            for (int i = 0; i < n; ++i) std::copy_n(&sets.x[static_cast<size_t>(order[i]) * depth], depth, &other.y[static_cast<size_t>(i + 3) * depth]);
            const Answers exchanged = ask(machine, other, inner, outer, ptx::Schedule::FORWARD);
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < m; ++j) {
                    if (std::memcmp(&exchanged.distances[static_cast<size_t>(j) * (n + 3) + i + 3], &answers.distances[static_cast<size_t>(order[i]) * m + j], 4) != 0)
                        wrong(what + ": other bits in another set");
                }
            }
        }
        // A row with a NaN has no nearest and no near neighbour, and leaves all others as they were.
        if (index % 8 == 3) {
            const int bad = random.between(0, n - 1);
            sets.x[static_cast<size_t>(bad) * depth + random.between(0, depth - 1)] = NAN;
            const Answers after = ask(machine, sets, inner, outer, ptx::Schedule::FORWARD);
            if (after.nearest[bad] != ~0ull || after.counts[bad] != 0 || after.open_counts[bad] != m) wrong(what + ": a NaN has neighbours");
            for (int i = 0; i < n; ++i) {
                if (i != bad && (after.nearest[i] != answers.nearest[i] || after.counts[i] != answers.counts[i])) wrong(what + ": a NaN changed other rows");
            }
        }
    }
    std::printf("latent_distance: %d shapes, %zu pairs against f64: worst error %.3g of the bound, %.3g relative; %zu neighbours, %zu open; "
                "%.3g instructions\n", shapes, pairs, worst, relative, neighbours, opens, static_cast<double>(machine.steps));
}
