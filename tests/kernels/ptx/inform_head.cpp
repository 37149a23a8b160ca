// The PTX of kernels/inform_head.cu against f64 over random shapes, and against PyTorch's autograd.
//
//     inform_head PTX_FILE SHAPES SEED
//
// Bounds, u = 2^-24 and b = 2^-8, to first order and doubled for the rest; a lane adds t terms, the tree 5 more.
//   posterior   h is right to (hidden / 64 + 9) u |h| (norm.cpp), and to b^2 |h| more as a sum of two bf16 numbers; lo * rest, which is
//               left out, is below b^2 |h w|; 3 (or 2) hidden products are added in f32: in all
//               (2 b^2 + (3 hidden + hidden / 64 + 9) u) sum |h w|. The weight is what its two parts add up to.
//   rewards     from the posterior that the kernel gave. A step sigma eps is right to 6 u (exp 2, eps 1, products), s to that and u |s|.
//               Linear: sum |w| (6 u |step| + u |s|) + (t + 5) u sum |s w|. Gated: a unit's g and u are such sums; silu grows by at
//               most 1.1 times the error of g, silu(g) u has 8 roundings, and the sum over units d + 4.
//   divergence  expm1 is right to 2 u: (t + 9) u sum(mu^2 + |expm1(logvar)| + |logvar|).
//   backward    each kernel from what the one before gave, by the same rules.

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <sstream>

#include "check.hpp"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr double U = F32_UNIT;
double worst = 0.0;
size_t compared = 0;

void compare(const std::string& what, double found, double exact, double bound) {
    const double error = std::fabs(found - exact), limit = 2.0 * bound + 0x1p-120;
    if (!(error <= limit)) {
        char text[160];
        std::snprintf(text, sizeof text, ": %.9g for %.9g, off by %.3g, bound %.3g", found, exact, error, limit);
        wrong(what + text);
    }
    worst = std::max(worst, error / limit);
    ++compared;
}

// src/model/noise.rs, in C++.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
    for (int round = 0; round < 10; ++round) {
        if (round > 0) k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
        const uint64_t first = uint64_t{c[0]} * 0xD2511F53u, second = uint64_t{c[2]} * 0xCD9E8D57u;
        c = {static_cast<uint32_t>(second >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(second), static_cast<uint32_t>(first >> 32) ^ c[3] ^ k[1],
             static_cast<uint32_t>(first)};
    }
    return c;
}

double normal_of(uint64_t element, uint64_t seed, uint64_t stream) {
    const uint64_t block = element / 4;
    const auto bits = philox({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                             {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    const unsigned pair = element % 4 / 2 * 2;
    const double radius = std::sqrt(-2.0 * std::log((bits[pair] + 1.0) * 0x1p-32)), angle = bits[pair + 1] * 0x1p-32 * 2.0 * M_PI;
    return radius * (element % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

struct Head {
    int rows, hidden, d, draws;
    bool gated, shared, normed, parted, indexed;
    float epsilon = 1e-5f;
    uint64_t seed = 5, stream = 9;
    Floats x, scale, decode, down;
    std::vector<int> index;
    std::vector<uint16_t> high, rest;

    double weight(int output, int column) const {
        const size_t at = static_cast<size_t>(output) * hidden + column;
        return static_cast<double>(from_bf16(high[at])) + (parted ? from_bf16(rest[at]) : 0.0f);
    }
    const float* source(int row) const { return &x[static_cast<size_t>(indexed ? index[row] : row) * hidden]; }
    uint64_t element(int row, int draw, int j) const {
        return (shared ? static_cast<uint64_t>(draw) : static_cast<uint64_t>(row) * draws + draw) * d + j;
    }
    double step(const Floats& posterior, int row, int draw, int j) const {
        if (draws == 0) return 0.0;
        return std::exp(0.5 * posterior[(static_cast<size_t>(row) * 2 + 1) * d + j]) * static_cast<float>(normal_of(element(row, draw, j), seed, stream));
    }
    size_t latent_shared() const { return gated ? 64u * d : 0; }
};

Floats normal(Random& random, size_t count, float size = 1.0f) {
    Floats values(count);
    for (float& value : values) value = size * random.normal();
    return values;
}

Head draw_head(Random& random, int index) {
    static const int dims[] = {16, 17, 32, 48, 33, 64, 24, 128}, widths[] = {64, 72, 96, 128, 136, 256, 320, 576, 1024};
    Head head{};
    head.rows = random.between(1, 3) == 1 ? random.between(17, 40) : random.between(1, 16);
    head.d = dims[index % 8], head.hidden = widths[random.between(0, 8)], head.draws = random.between(0, 3);
    head.gated = index % 3 == 1;
    if (head.gated && head.d > 48) head.rows = std::min(head.rows, 5), head.draws = std::min(head.draws, 1);
    if (index % 50 == 7) head.hidden = 4096, head.rows = 3, head.d = 16;
    if (index % 50 == 9) head.hidden = 64, head.d = 512, head.rows = 20, head.gated = false;
    if (index == 30) head.hidden = 64, head.d = 512, head.rows = 2, head.gated = true, head.draws = 0;
    if (index % 10 == 2) head.rows = 1;
    head.shared = random.chance(0.5), head.normed = random.chance(0.8), head.parted = random.chance(0.7), head.indexed = random.chance(0.6);
    const int known = head.rows + random.between(0, 4);
    head.x = normal(random, static_cast<size_t>(known) * head.hidden, random.chance(0.3) ? 20.0f : 1.0f);
    if (!head.normed) for (float& value : head.x) value = std::clamp(value, -4.0f, 4.0f);
    for (int row = 0; row < head.rows; ++row) head.index.push_back(random.between(0, known - 1));
    head.scale = normal(random, head.hidden, 0.3f);
    for (float& value : head.scale) value += 1.0f;
    for (int i = 0; i < 2 * head.d * head.hidden; ++i) {
        const float value = random.normal() / std::sqrt(static_cast<float>(head.hidden));
        head.high.push_back(to_bf16(value));
        head.rest.push_back(to_bf16(value - from_bf16(head.high.back())));
    }
    head.decode = normal(random, head.gated ? static_cast<size_t>(8) * head.d * head.d : head.d, 1.0f / std::sqrt(static_cast<float>(head.d)));
    head.down = normal(random, head.gated ? 4 * head.d : 0, 0.2f);
    return head;
}

struct Answer {
    Floats rewards, posterior, divergence;
    bool operator==(const Answer& other) const {
        const auto same = [](const Floats& a, const Floats& b) { return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0; };
        return same(rewards, other.rewards) && same(posterior, other.posterior) && same(divergence, other.divergence);
    }
    Answer row(int index, int d) const {
        const size_t draws = rewards.size() / divergence.size();
        const auto part = [&](const Floats& from, size_t width) { return Floats(from.begin() + index * width, from.begin() + (index + 1) * width); };
        return {part(rewards, draws), part(posterior, 2 * d), part(divergence, 1)};
    }
};

void allow_all(ptx::Machine& machine, std::initializer_list<const Floats*> arrays) {
    for (const Floats* values : arrays) allow(machine, *values);
}

Answer ask(ptx::Machine& machine, const Head& head, ptx::Schedule schedule) {
    const size_t rows = head.rows;
    Answer answer{Floats(rows * std::max(head.draws, 1), NAN), Floats(rows * 2 * head.d, NAN), Floats(rows, NAN)};
    std::vector<unsigned> arrived((rows + 15) / 16, 0);
    machine.forget();
    allow_all(machine, {&answer.rewards, &answer.posterior, &answer.divergence, &head.x, &head.scale, &head.decode, &head.down});
    allow(machine, arrived), allow(machine, head.index), allow(machine, head.high), allow(machine, head.rest);
    const int* const index = head.indexed ? head.index.data() : nullptr;
    const float *const scale = head.normed ? head.scale.data() : nullptr, *const down = head.gated ? head.down.data() : nullptr;
    const uint16_t* const rest = head.parted ? head.rest.data() : nullptr;
    machine.launch("inform_head_forward", (rows + 15) / 16, (2 * head.d + 127) / 128, 128, head.latent_shared(),
                   {answer.rewards.data(), answer.posterior.data(), answer.divergence.data(), arrived.data(), head.x.data(), index, scale, head.high.data(), rest,
                    head.decode.data(), down, head.rows, head.hidden, head.d, head.draws, static_cast<int>(head.shared), head.seed, head.stream, head.epsilon},
                   schedule);
    for (unsigned count : arrived) if (count != 0) wrong("a counter that is not zero again");
    return answer;
}

// The size of a row: its factor 1 / sqrt(mean(x^2) + epsilon).
double inverse_of(const Head& head, int row) {
    if (!head.normed) return 1.0;
    double sum = 0.0;
    for (int c = 0; c < head.hidden; ++c) sum += static_cast<double>(head.source(row)[c]) * head.source(row)[c];
    return 1.0 / std::sqrt(sum / head.hidden + head.epsilon);
}

void check_forward(const std::string& what, const Head& head, const Answer& answer) {
    const int d = head.d, hidden = head.hidden;
    const double lane_terms = d / 32 + 8;
    for (int row = 0; row < head.rows; ++row) {
        const double inverse = inverse_of(head, row);
        const float* const mu = &answer.posterior[static_cast<size_t>(row) * 2 * d];
        for (int output = 0; output < 2 * d; ++output) {
            double exact = 0.0, size = 0.0;
            for (int c = 0; c < hidden; ++c) {
                const double term = head.source(row)[c] * inverse * (head.normed ? head.scale[c] : 1.0) * head.weight(output, c);
                exact += term, size += std::fabs(term);
            }
            compare(what + ", posterior", mu[output], exact, (2 * BF16_UNIT * BF16_UNIT + (3 * hidden + hidden / 64 + 9) * U) * size);
        }
        double divergence = 0.0, size = 0.0;
        for (int j = 0; j < d; ++j) {
            const double m = mu[j], v = mu[d + j];
            divergence += 0.5 * (m * m + std::expm1(v) - v), size += 0.5 * (m * m + std::fabs(std::expm1(v)) + std::fabs(v));
        }
        compare(what + ", divergence", answer.divergence[row], divergence, (lane_terms + 9) * U * size);
        for (int draw = 0; draw < std::max(head.draws, 1); ++draw) {
            Doubles s(d), off(d);
            for (int j = 0; j < d; ++j) {
                const double step = head.step(answer.posterior, row, draw, j);
                s[j] = mu[j] + step, off[j] = 6 * U * std::fabs(step) + U * std::fabs(s[j]);
            }
            double exact = 0.0, bound = 0.0, total = 0.0;
            const auto dot = [&](const float* weights, double& value, double& error) {
                double sizes = 0.0;
                value = error = 0.0;
                for (int j = 0; j < d; ++j) value += weights[j] * s[j], sizes += std::fabs(weights[j] * s[j]), error += std::fabs(weights[j]) * off[j];
                error += (lane_terms + 5) * U * sizes;
            };
            if (!head.gated) {
                dot(head.decode.data(), exact, bound);
            } else {
                for (int unit = 0; unit < 4 * d; ++unit) {
                    double g, u, of_g, of_u;
                    dot(&head.decode[static_cast<size_t>(unit) * d], g, of_g);
                    dot(&head.decode[static_cast<size_t>(4 * d + unit) * d], u, of_u);
                    const double silu = g / (1.0 + std::exp(-g)), term = head.down[unit] * silu * u;
                    exact += term, total += std::fabs(term);
                    bound += std::fabs(head.down[unit]) * (1.1 * of_g * std::fabs(u) + std::fabs(silu) * of_u) + 8 * U * std::fabs(term);
                }
                bound += (d + 4) * U * total;
            }
            compare(what + ", reward", answer.rewards[static_cast<size_t>(row) * std::max(head.draws, 1) + draw], exact, bound);
        }
    }
}

struct Gradients {
    Floats posterior, latents, activations, units, x, normed, whitened, scale, encode, decode, down;
};

Gradients backward(ptx::Machine& machine, const Head& head, const Answer& forward, const Floats& d_reward, const Floats& d_divergence, ptx::Schedule schedule) {
    const size_t rows = head.rows, d = head.d, hidden = head.hidden, wide = head.gated ? d : 0;
    const auto room = [](size_t count) { return Floats(count, NAN); };
    Gradients g{room(rows * 2 * d), room(rows * d), room(rows * 4 * wide), room(rows * 8 * wide), room(rows * hidden), room(rows * hidden), room(rows * hidden),
                room(hidden), room(2 * d * hidden), room(head.decode.size()), room(head.down.size())};
    machine.forget();
    allow_all(machine, {&g.posterior, &g.latents, &g.activations, &g.units, &g.x, &g.normed, &g.whitened, &g.scale, &g.encode, &g.decode, &g.down, &head.x,
                        &head.scale, &head.decode, &head.down, &forward.posterior, &d_reward, &d_divergence});
    allow(machine, head.index), allow(machine, head.high), allow(machine, head.rest);
    const auto or_null = [](bool there, const auto* pointer) { return there ? pointer : nullptr; };
    const int n = head.rows, h = head.hidden, l = head.d;
    machine.launch("inform_head_backward_latent", rows, 1, 128, (head.gated ? 36 : 4) * d,
                   {g.posterior.data(), g.latents.data(), or_null(head.gated, g.activations.data()), or_null(head.gated, g.units.data()), forward.posterior.data(),
                    head.decode.data(), or_null(head.gated, head.down.data()), d_reward.data(), d_divergence.data(), l, head.draws, static_cast<int>(head.shared),
                    head.seed, head.stream},
                   schedule);
    machine.launch("inform_head_backward_input", rows, 1, 128, 0,
                   {g.x.data(), g.normed.data(), g.whitened.data(), head.x.data(), or_null(head.indexed, head.index.data()), or_null(head.normed, head.scale.data()),
                    head.high.data(), or_null(head.parted, head.rest.data()), g.posterior.data(), h, l, head.epsilon},
                   schedule);
    machine.launch("inform_head_backward_scale", (hidden + 127) / 128, 1, 128, 0, {g.scale.data(), g.normed.data(), g.whitened.data(), n, h}, schedule);
    const auto weight = [&](Floats& out, const Floats& gradients, const Floats& inputs, const float* factor) {
        const int outputs = gradients.size() / rows, columns = inputs.size() / rows;
        machine.launch("inform_head_backward_weight", (columns + 127) / 128, (outputs + 7) / 8, 128, 0,
                       {out.data(), gradients.data(), inputs.data(), factor, n, outputs, columns}, schedule);
    };
    weight(g.encode, g.posterior, g.whitened, or_null(head.normed, head.scale.data()));
    if (head.gated) weight(g.decode, g.units, g.latents, nullptr), weight(g.down, d_reward, g.activations, nullptr);
    else weight(g.decode, d_reward, g.latents, nullptr);
    return g;
}

void check_backward(const std::string& what, const Head& head, const Answer& forward, const Gradients& g, const Floats& d_reward, const Floats& d_divergence) {
    const int d = head.d, hidden = head.hidden, rows = head.rows;
    const double terms = d / 32 + 13;
    const bool whole = head.gated;  // every row's latents, then sampled columns
    for (int row = 0; row < rows; ++row) {
        const float* const mu = &forward.posterior[static_cast<size_t>(row) * 2 * d];
        Doubles of_latent(d, 0.0), bound(d, 0.0);
        Doubles s(d), off(d), step(d);
        for (int j = 0; j < d; ++j) {
            step[j] = head.step(forward.posterior, row, 0, j), s[j] = mu[j] + step[j], off[j] = 6 * U * std::fabs(step[j]) + U * std::fabs(s[j]);
            compare(what + ", latent", g.latents[static_cast<size_t>(row) * d + j], s[j], off[j]);
        }
        if (!whole) for (int j = 0; j < d; ++j) of_latent[j] = static_cast<double>(d_reward[row]) * head.decode[j], bound[j] = U * std::fabs(of_latent[j]);
        for (int unit = 0; whole && unit < 4 * d; ++unit) {
            double value[2] = {}, error[2] = {};
            for (int half = 0; half < 2; ++half) {
                double sizes = 0.0;
                for (int j = 0; j < d; ++j) {
                    const double w = head.decode[static_cast<size_t>(half * 4 * d + unit) * d + j];
                    value[half] += w * s[j], sizes += std::fabs(w * s[j]), error[half] += std::fabs(w) * off[j];
                }
                error[half] += terms * U * sizes;
            }
            const double gate = value[0], up = value[1], sigmoid = 1.0 / (1.0 + std::exp(-gate)), silu = gate * sigmoid;
            const double slope = sigmoid * (1.0 + gate * (1.0 - sigmoid)), from = static_cast<double>(d_reward[row]) * head.down[unit];
            compare(what + ", activation", g.activations[static_cast<size_t>(row) * 4 * d + unit], silu * up,
                    1.1 * error[0] * std::fabs(up) + std::fabs(silu) * error[1] + 8 * U * std::fabs(silu * up));
            // |silu''| is at most 1/2. The factor 1 + g (1 - sigmoid) cancels near its zero: its error is of its terms.
            const double exact[2] = {from * up * slope, from * silu};
            const double limits[2] = {std::fabs(from) * (std::fabs(slope) * error[1] + 0.5 * std::fabs(up) * error[0] + 12 * U * std::fabs(up) * (1.0 + std::fabs(gate)) * sigmoid),
                                      std::fabs(from) * (1.1 * error[0] + 8 * U * std::fabs(silu))};
            for (int half = 0; half < 2; ++half) {
                compare(what + ", d unit", g.units[static_cast<size_t>(row) * 8 * d + half * 4 * d + unit], exact[half], limits[half]);
                for (int j = 0; j < d; ++j) {
                    const double w = head.decode[static_cast<size_t>(half * 4 * d + unit) * d + j];
                    of_latent[j] += exact[half] * w, bound[j] += std::fabs(w) * (limits[half] + 8.0 * d * U * std::fabs(exact[half]));
                }
            }
        }
        for (int j = 0; j < d; ++j) {
            const double kl = d_divergence[row], m = mu[j], v = mu[d + j];
            const double of_mu = of_latent[j] + kl * m, of_logvar = of_latent[j] * 0.5 * step[j] + 0.5 * kl * std::expm1(v);
            const float* const found = &g.posterior[static_cast<size_t>(row) * 2 * d];
            compare(what + ", d mu", found[j], of_mu, bound[j] + 3 * U * (std::fabs(of_latent[j]) + std::fabs(kl * m)));
            compare(what + ", d logvar", found[d + j], of_logvar,
                    0.5 * std::fabs(step[j]) * (bound[j] + 8 * U * std::fabs(of_latent[j])) + 6 * U * std::fabs(kl * std::expm1(v)) + 2 * U * std::fabs(of_logvar));
        }
        const double inverse = inverse_of(head, row), norm_error = (hidden / 64 + 9) * U;
        Doubles normed(hidden), sizes(hidden);
        double along = 0.0, along_size = 0.0;
        for (int c = 0; c < hidden; ++c) {
            for (int output = 0; output < 2 * d; ++output) {
                const double term = g.posterior[static_cast<size_t>(row) * 2 * d + output] * head.weight(output, c);
                normed[c] += term, sizes[c] += std::fabs(term);
            }
            const size_t at = static_cast<size_t>(row) * hidden + c;
            compare(what + ", d normed", g.normed[at], normed[c], (2 * d + 2) * U * sizes[c]);
            compare(what + ", whitened", g.whitened[at], head.source(row)[c] * inverse, norm_error * std::fabs(head.source(row)[c] * inverse));
            const double term = normed[c] * head.scale[c] * head.source(row)[c] * inverse;
            along += term / hidden, along_size += std::fabs(sizes[c] * head.scale[c] * head.source(row)[c] * inverse) / hidden;
        }
        for (int c = 0; c < hidden; ++c) {
            const double white = head.source(row)[c] * inverse;
            const double exact = head.normed ? inverse * (normed[c] * head.scale[c] - white * along) : normed[c];
            const double limit = !head.normed ? (2 * d + 2) * U * sizes[c]
                                              : inverse * ((2 * d + 6) * U * sizes[c] * std::fabs(head.scale[c]) +
                                                           std::fabs(white) * (2 * d + hidden / 128 + 12) * U * along_size + 2 * norm_error * (std::fabs(normed[c] * head.scale[c]) + std::fabs(white) * along_size));
            compare(what + ", d x", g.x[static_cast<size_t>(row) * hidden + c], exact, limit);
        }
    }
    const auto sum = [&](const char* name, const Floats& out, const Floats& gradients, const Floats& inputs, const float* factor) {
        const size_t outputs = gradients.size() / rows, columns = inputs.size() / rows;
        for (size_t o = 0; o < outputs; ++o) {
            for (size_t c = 0; c < columns; ++c) {
                double exact = 0.0, size = 0.0;
                for (int row = 0; row < rows; ++row) {
                    const double term = static_cast<double>(gradients[row * outputs + o]) * inputs[row * columns + c] * (factor == nullptr ? 1.0 : factor[c]);
                    exact += term, size += std::fabs(term);
                }
                compare(what + name, out[o * columns + c], exact, (rows + 1) * U * size);
            }
        }
    };
    sum(", d encode", g.encode, g.posterior, g.whitened, head.normed ? head.scale.data() : nullptr);
    if (head.gated) sum(", d decode", g.decode, g.units, g.latents, nullptr), sum(", d down", g.down, d_reward, g.activations, nullptr);
    else sum(", d decode", g.decode, d_reward, g.latents, nullptr);
    for (int c = 0; c < hidden; ++c) {
        double exact = 0.0, size = 0.0;
        for (int row = 0; row < rows; ++row) {
            const double term = static_cast<double>(g.normed[static_cast<size_t>(row) * hidden + c]) * g.whitened[static_cast<size_t>(row) * hidden + c];
            exact += term, size += std::fabs(term);
        }
        compare(what + ", d scale", g.scale[c], exact, (rows + 1) * U * size);
    }
}

bool same(const Gradients& a, const Gradients& b) {
    const auto equal = [](const Floats& a, const Floats& b) { return a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0; };
    return equal(a.posterior, b.posterior) && equal(a.units, b.units) && equal(a.x, b.x) && equal(a.scale, b.scale) && equal(a.encode, b.encode) &&
           equal(a.decode, b.decode) && equal(a.down, b.down);
}

// The row's bits alone, at another place among other rows, and beside a row that is not a number. Noise of its own follows a row's number,
// so it stays the same row number there.
void check_neighbours(ptx::Machine& machine, const std::string& what, Random& random, const Head& head, const Answer& answer) {
    const int row = random.between(0, head.rows - 1);
    Head moved = head;
    moved.indexed = false, moved.x.clear();
    const bool placed = head.draws > 0 && !head.shared;
    const int place = placed ? row : random.between(0, 20);
    moved.rows = place + 1 + random.between(0, 3);
    for (int other = 0; other < moved.rows; ++other) {
        const bool spoilt = random.chance(0.3);
        for (int c = 0; c < head.hidden; ++c) moved.x.push_back(other == place ? head.source(row)[c] : spoilt ? NAN : random.normal());
    }
    const Answer there = ask(machine, moved, ptx::Schedule::FORWARD);
    if (!(there.row(place, head.d) == answer.row(row, head.d))) wrong(what + ": other bits among other rows");
}

std::map<std::string, Doubles> golden() {
    std::string path = __FILE__;
    path = path.substr(0, path.rfind("/kernels/")) + "/golden/inform_head.txt";
    std::ifstream file(path);
    std::map<std::string, Doubles> arrays;
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string name;
        size_t count;
        words >> name >> count;
        Doubles& values = arrays[name];
        for (double value; words >> value;) values.push_back(value);
        if (values.size() != count) wrong(path + ": " + name + " is not whole");
    }
    if (arrays.empty()) wrong(path + " is missing: tests/golden/inform_head.py writes it");
    return arrays;
}

// Against PyTorch: 1e-4 of an array's size; bf16x3 and f32 give 1e-5.
void check_golden(ptx::Machine& machine) {
    const auto arrays = golden();
    for (const std::string kind : {"linear", "gated"}) {
        const auto get = [&](const std::string& name) { return arrays.at(kind + "." + name); };
        const auto floats = [&](const std::string& name) { const Doubles v = get(name); return Floats(v.begin(), v.end()); };
        const auto rounded = [&](const std::string& name) {
            std::vector<uint16_t> bits;
            for (double value : get(name)) bits.push_back(to_bf16(static_cast<float>(value)));
            return bits;
        };
        Head head{};
        head.rows = get("d_reward").size(), head.hidden = get("scale").size(), head.d = get("posterior").size() / head.rows / 2, head.draws = 1;
        head.gated = kind == "gated", head.normed = head.parted = true, head.seed = 7, head.stream = 3;
        head.x = floats("x"), head.scale = floats("scale"), head.decode = floats("decode"), head.high = rounded("encode_high"), head.rest = rounded("encode_rest");
        if (head.gated) head.down = floats("down");
        const Answer answer = ask(machine, head, ptx::Schedule::FORWARD);
        const Gradients g = backward(machine, head, answer, floats("d_reward"), floats("d_divergence"), ptx::Schedule::FORWARD);
        const auto near = [&](const std::string& name, const Floats& found) {
            const Doubles expected = get(name);
            double error = 0.0, size = 0.0;
            for (size_t i = 0; i < expected.size(); ++i) error += std::pow(found[i] - expected[i], 2), size += expected[i] * expected[i];
            if (!(std::sqrt(error / size) < 1e-4) || found.size() != expected.size()) wrong(kind + "." + name + " is off PyTorch's by " + std::to_string(std::sqrt(error / size)));
        };
        near("posterior", answer.posterior), near("rewards", answer.rewards), near("divergence", answer.divergence);
        near("d_x", g.x), near("d_scale", g.scale), near("d_encode", g.encode), near("d_decode", g.decode);
        if (head.gated) near("d_down", g.down);
    }
}

// Random123's known answers, the host's numbers, and the distribution of a million.
void check_noise(ptx::Machine& machine, int count) {
    const std::vector<uint32_t> counters{0, 0, 0, 0, ~0u, ~0u, ~0u, ~0u, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, keys{0, 0, ~0u, ~0u, 0xa4093822, 0x299f31d0};
    const std::vector<uint32_t> known{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
    std::vector<uint32_t> blocks(12, 0);
    Floats values(count, NAN);
    machine.forget();
    allow(machine, counters), allow(machine, keys), allow(machine, blocks), allow(machine, values);
    machine.launch("philox_blocks", 1, 1, 128, 0, {blocks.data(), counters.data(), keys.data(), 3}, ptx::Schedule::FORWARD);
    if (blocks != known) wrong("Philox4x32-10 is not Random123's");
    const uint64_t seed = 0x123456789abcdefull, stream = 0xfedcba987654321ull;
    machine.launch("standard_normal", (count + 511) / 512, 1, 128, 0, {values.data(), count, seed, stream}, ptx::Schedule::TOGETHER);
    for (int i = 0; i < count; i += i < 10000 ? 1 : 97) {
        const double expected = normal_of(i, seed, stream);
        if (!(std::fabs(values[i] - expected) <= U * std::fabs(expected) + 1e-14)) wrong("number " + std::to_string(i) + " is not the host's");
    }
    // Moments of n standard normal numbers, in standard errors: mean 1 / sqrt n, variance sqrt(2 / n), skewness sqrt(6 / n), kurtosis sqrt(24 / n).
    const double n = count;
    double mean = 0.0, second = 0.0, third = 0.0, fourth = 0.0;
    for (float v : values) mean += v / n, second += std::pow(v, 2) / n, third += std::pow(v, 3) / n, fourth += std::pow(v, 4) / n;
    const double moments[] = {mean * std::sqrt(n), (second - 1.0) * std::sqrt(n / 2.0), third * std::sqrt(n / 15.0), (fourth - 3.0) * std::sqrt(n / 96.0)};
    for (double moment : moments) if (!(std::fabs(moment) < 4.0)) wrong("a moment of the noise is off by " + std::to_string(moment) + " standard errors");
    std::sort(values.begin(), values.end());
    double distance = 0.0;
    for (int i = 0; i < count; ++i) {
        const double below = 0.5 * std::erfc(-values[i] / std::sqrt(2.0));
        distance = std::max({distance, below - i / n, (i + 1) / n - below});
    }
    // Kolmogorov and Smirnov's law: beyond 1.95 / sqrt n once in 1,000.
    if (!(distance * std::sqrt(n) < 1.95)) wrong("the noise is not normal: Kolmogorov-Smirnov " + std::to_string(distance * std::sqrt(n)));
    std::printf("inform_head: %d draws: moments off by %.2f, %.2f, %.2f, %.2f standard errors; Kolmogorov-Smirnov %.2f of 1.95\n", count, moments[0], moments[1],
                moments[2], moments[3], distance * std::sqrt(n));
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: inform_head PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    check_golden(machine);
    check_noise(machine, shapes >= 100 ? 1000000 : 20000);
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        Head head = draw_head(random, index);
        const std::string what = "shape " + std::to_string(index) + " (rows " + std::to_string(head.rows) + ", hidden " + std::to_string(head.hidden) + ", d " +
                                 std::to_string(head.d) + (head.gated ? ", gated" : ", linear") + ", draws " + std::to_string(head.draws) + ")";
        const Answer answer = ask(machine, head, ptx::Schedule::FORWARD);
        check_forward(what, head, answer);
        for (ptx::Schedule schedule : {ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED})
            if (!(ask(machine, head, schedule) == answer)) wrong(what + ": other bits in another schedule");
        check_neighbours(machine, what, random, head, answer);
        if (head.hidden * head.d > 64 * 512) continue;
        head.draws = std::min(head.draws, 1);
        const Answer once = ask(machine, head, ptx::Schedule::TOGETHER);
        const Floats d_reward = normal(random, head.rows), d_divergence = normal(random, head.rows);
        const Gradients gradients = backward(machine, head, once, d_reward, d_divergence, ptx::Schedule::FORWARD);
        check_backward(what, head, once, gradients, d_reward, d_divergence);
        if (!same(gradients, backward(machine, head, once, d_reward, d_divergence, ptx::Schedule::SHUFFLED))) wrong(what + ": other gradients in another schedule");
    }
    std::printf("inform_head: %d shapes, %zu numbers against f64: worst error %.3g of the bound; %.3g instructions\n", shapes, compared, worst,
                static_cast<double>(machine.steps));
}
