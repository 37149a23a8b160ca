// The InfoRM head: from hidden states to rewards in one launch, and its backward.
//
//   forward    h = x / sqrt(mean(x^2) + epsilon) * scale of the pooled rows,  [mu | logvar] = encode h,
//              s = mu + exp(logvar / 2) * eps,  reward = g(s),  divergence = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar);
//              g(s) = decode . s, or down . (silu(gate s) * up s) with decode = [gate ; up].
//   backward   from d loss / d reward and d loss / d divergence to the gradients of x, scale, encode, decode and down:
//              inform_head_backward_latent, then _input, _scale, and _weight once for each weight.
//
// Shapes    x [any, hidden] f32, index [rows] or null (row r itself), scale [hidden] or null (x is h); hidden a multiple of 8,
//           x, scale and encode on 16 bytes. encode, encode_rest [2 latent_dim, hidden] bf16: the weight, and what its rounding
//           left, or null where nothing did. decode f32 [latent_dim], down null; or [8 latent_dim, latent_dim], down
//           [4 latent_dim]. posterior [rows, 2 latent_dim], divergence [rows] or null, rewards [rows, max(draws, 1)] f32.
//           arrived [ceil(rows / 16)] is zero before, and after.
// Noise     draws = 0: eps = 0. Else eps of draw k and channel j is element k latent_dim + j of (seed, stream), the same
//           for all rows, where noise is shared, else element (row draws + k) latent_dim + j.
// Launch    forward: grid (ceil(rows / 16), ceil(2 latent_dim / 128)), 128 threads, 64 latent_dim bytes of dynamic shared
//           memory for a gated decode. The others: at each.
// Memory    floor: 4 rows hidden + 2 (or 4) * 2 latent_dim hidden bytes. encode is read once for each 16 rows, from the
//           second-level cache but for the first time.
// FLOP      4 rows latent_dim hidden, times 2 (or 3) for the parts.
//
// Precision A reward is compared to the last digit, and the head costs next to nothing beside its backbone, so it is as good as
//           in f32: h and encode are each the sum of two bf16 numbers, and of the four products the three that matter
//           are added (bf16x3: Henry, Tang and Heinecke 2019). What is left out is below 2^-16 of sum |encode h|.
// Tile      16 rows, the least that mma has, by 128 columns, so that few rows still fill several SMs. Warps take columns, so
//           each reads its own part of encode and nothing goes through shared memory but h. Both operands' inner index
//           is permuted alike, 8 neighbours a thread: loads of 16 bytes, and an order that is the same for all.
//           The last block of 16 rows to arrive decodes: a launch more would cost what the whole head costs.
// Source    InfoRM (Miao et al. 2024), section 4; Kingma and Welling 2014; gated decode: Shazeer 2020.
//
// Bits of a row depend on the row alone: its sums run over ascending columns, lanes are added in a tree, warps in their order.

#include "common.cuh"
#include "philox.cuh"

namespace inform_head {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int ROWS = 16;
constexpr int COLUMNS = 128;                   // of the posterior, a block
constexpr int TILES = COLUMNS / 8 / WARPS;     // of 8 columns, a warp
constexpr int CHUNK = 128;                     // of the hidden state, at a time
constexpr int STRIDE = CHUNK + 32;             // rows begin 16 banks apart
constexpr unsigned ALL = 0xffffffffu;

struct Noise {
    unsigned long long seed, stream;
    int draws;
    bool shared;

    __device__ unsigned long long first(int row, int draw, int latent_dim) const {
        const unsigned long long line = shared ? draw : static_cast<unsigned long long>(row) * draws + draw;
        return line * latent_dim;
    }
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL, value, distance);
    return value;
}

__device__ __forceinline__ float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }

// 1 / sqrt(mean(x^2) + epsilon), by one warp.
__device__ __forceinline__ float inverse_size(const float* row, int hidden, float epsilon) {
    float sum = 0.0f;
    for (int column = threadIdx.x % 32 * 4; column < hidden; column += 128) {
        const float4 v = *reinterpret_cast<const float4*>(row + column);
        sum = fmaf(v.x, v.x, sum), sum = fmaf(v.y, v.y, sum), sum = fmaf(v.z, v.z, sum), sum = fmaf(v.w, v.w, sum);
    }
    return 1.0f / sqrtf(warp_sum(sum) / hidden + epsilon);
}

// Calls for this lane's channels and their latents, in a fixed order. `posterior`: the row's [mu | logvar].
template <typename Function>
__device__ __forceinline__ void each_latent(
    const float* posterior, int latent_dim, const Noise& noise, int row, int draw, int lane, int lanes, Function function
) {
    if (noise.draws == 0) {
        for (int j = lane; j < latent_dim; j += lanes) function(j, __ldcg(posterior + j), 0.0f);
        return;
    }
    const unsigned long long first = noise.first(row, draw, latent_dim);
    for (unsigned long long block = first / 4 + lane; block * 4 < first + latent_dim; block += lanes) {
        const float4 normal = standard_normal4(block, noise.seed, noise.stream);
        const float eps[4] = {normal.x, normal.y, normal.z, normal.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned long long element = block * 4 + i;
            if (element < first || element >= first + latent_dim) continue;
            const int j = static_cast<int>(element - first);
            const float step = expf(0.5f * __ldcg(posterior + latent_dim + j)) * eps[i];
            function(j, __ldcg(posterior + j) + step, step);
        }
    }
}

struct Problem {
    float* rewards;
    float* posterior;
    float* divergence;
    const float* x;
    const int* index;
    const float* scale;
    const bf16* encode;
    const bf16* encode_rest;
    const float* decode;
    const float* down;
    int rows, hidden, latent_dim;
    float epsilon;
    Noise noise;
};

struct Stage {
    float inverse[ROWS];
    __align__(16) bf16 high[ROWS * STRIDE];
    __align__(16) bf16 low[ROWS * STRIDE];
};

// 16 rows and 128 columns of the posterior.
__device__ __forceinline__ void encode(const Problem& problem, Stage& stage) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, part = lane % 4 * 8;
    const int first_row = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS;
    const int hidden = problem.hidden, outputs = 2 * problem.latent_dim;
    const auto source = [&](int row) {
        const int from = problem.index == nullptr ? first_row + row : problem.index[first_row + row];
        return problem.x + static_cast<size_t>(from) * hidden;
    };
    for (int row = warp; row < ROWS; row += WARPS) {
        float inverse = 1.0f;
        if (first_row + row < problem.rows && problem.scale != nullptr) inverse = inverse_size(source(row), hidden, problem.epsilon);
        if (lane == 0) stage.inverse[row] = inverse;
    }
    const int staged_row = threadIdx.x / 8;
    const bool row_exists = first_row + staged_row < problem.rows;
    const float* const staged = row_exists ? source(staged_row) : nullptr;

    float sums[TILES][4] = {};
    for (int chunk = 0; chunk < hidden; chunk += CHUNK) {
        __syncthreads();
        const float inverse = stage.inverse[staged_row];
#pragma unroll
        for (int piece = 0; piece < CHUNK / 32; ++piece) {
            const int column = threadIdx.x % 8 * 4 + piece * 32;
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (row_exists && chunk + column < hidden) {
                v = *reinterpret_cast<const float4*>(staged + chunk + column);
                if (problem.scale != nullptr) {
                    const float4 s = *reinterpret_cast<const float4*>(problem.scale + chunk + column);
                    v = make_float4(v.x * inverse * s.x, v.y * inverse * s.y, v.z * inverse * s.z, v.w * inverse * s.w);
                }
            }
            const uint2 high = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
            const uint2 low = make_uint2(
                pack_bf16(v.x - __uint_as_float(high.x << 16), v.y - __uint_as_float(high.x & 0xffff0000u)),
                pack_bf16(v.z - __uint_as_float(high.y << 16), v.w - __uint_as_float(high.y & 0xffff0000u))
            );
            *reinterpret_cast<uint2*>(stage.high + staged_row * STRIDE + column) = high;
            *reinterpret_cast<uint2*>(stage.low + staged_row * STRIDE + column) = low;
        }
        __syncthreads();
#pragma unroll
        for (int step = 0; step < CHUNK; step += 32) {
            if (chunk + step >= hidden) break;
            const auto fragment = [&](const bf16* values, int half) {
                return *reinterpret_cast<const uint4*>(values + (quad + 8 * half) * STRIDE + step + part);
            };
            const uint4 high0 = fragment(stage.high, 0), high1 = fragment(stage.high, 1);
            const uint4 low0 = fragment(stage.low, 0), low1 = fragment(stage.low, 1);
            const uint32_t high[2][4] = {{high0.x, high1.x, high0.y, high1.y}, {high0.z, high1.z, high0.w, high1.w}};
            const uint32_t low[2][4] = {{low0.x, low1.x, low0.y, low1.y}, {low0.z, low1.z, low0.w, low1.w}};
            const int inner = chunk + step + part;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const int output = first_column + (tile * WARPS + warp) * 8 + quad;
                const bool exists = output < outputs && inner < hidden;
                const size_t from = static_cast<size_t>(output) * hidden + inner;
                const uint4 none = make_uint4(0, 0, 0, 0);
                const uint4 weight = exists ? *reinterpret_cast<const uint4*>(problem.encode + from) : none;
                mma_bf16(sums[tile], high[0], weight.x, weight.y);
                mma_bf16(sums[tile], high[1], weight.z, weight.w);
                mma_bf16(sums[tile], low[0], weight.x, weight.y);
                mma_bf16(sums[tile], low[1], weight.z, weight.w);
                if (problem.encode_rest != nullptr) {
                    const uint4 rest = exists ? *reinterpret_cast<const uint4*>(problem.encode_rest + from) : none;
                    mma_bf16(sums[tile], high[0], rest.x, rest.y);
                    mma_bf16(sums[tile], high[1], rest.z, rest.w);
                }
            }
        }
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first_row + quad + i / 2 * 8;
            const int column = first_column + (tile * WARPS + warp) * 8 + lane % 4 * 2 + i % 2;
            if (row < problem.rows && column < outputs) problem.posterior[static_cast<size_t>(row) * outputs + column] = sums[tile][i];
        }
    }
}

// Rewards of one draw of up to 16 rows, by the gated decode. `latents` [16, latent_dim].
__device__ __forceinline__ void decode_gated(const Problem& problem, float* latents, float (*partial)[ROWS], int first_row, int rows, int draw) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = problem.latent_dim;
    for (int row = warp; row < ROWS; row += WARPS) {
        if (row < rows) {
            const float* const posterior = problem.posterior + static_cast<size_t>(first_row + row) * 2 * d;
            each_latent(posterior, d, problem.noise, first_row + row, draw, lane, 32, [&](int j, float s, float) { latents[row * d + j] = s; });
        } else {
            for (int j = lane; j < d; j += 32) latents[row * d + j] = 0.0f;
        }
    }
    __syncthreads();
    float reward = 0.0f;  // of row `lane`, this warp's units
    for (int unit = warp; unit < 4 * d; unit += WARPS) {
        const float* const gate = problem.decode + static_cast<size_t>(unit) * d;
        const float* const up = gate + static_cast<size_t>(4 * d) * d;
        float gates[ROWS] = {}, ups[ROWS] = {};
        for (int j = lane; j < d; j += 32) {
            const float g = gate[j], u = up[j];
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                const float s = latents[row * d + j];
                gates[row] = fmaf(g, s, gates[row]), ups[row] = fmaf(u, s, ups[row]);
            }
        }
        float own_gate = 0.0f, own_up = 0.0f;
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const float g = warp_sum(gates[row]), u = warp_sum(ups[row]);
            if (lane == row) own_gate = g, own_up = u;
        }
        reward = fmaf(problem.down[unit], own_gate * sigmoid(own_gate) * own_up, reward);
    }
    if (lane < ROWS) partial[warp][lane] = reward;
    __syncthreads();
    if (threadIdx.x < rows) {
        float sum = partial[0][threadIdx.x];
#pragma unroll
        for (int other = 1; other < WARPS; ++other) sum += partial[other][threadIdx.x];
        problem.rewards[static_cast<size_t>(first_row + threadIdx.x) * max(problem.noise.draws, 1) + draw] = sum;
    }
    __syncthreads();
}

// Rewards and divergences of 16 rows whose posteriors are there.
__device__ __forceinline__ void decode(const Problem& problem, float* latents, float (*partial)[ROWS]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = problem.latent_dim;
    const int first_row = blockIdx.x * ROWS, rows = min(ROWS, problem.rows - first_row), draws = max(problem.noise.draws, 1);
    if (problem.divergence != nullptr) {
        for (int row = warp; row < rows; row += WARPS) {
            const float* const posterior = problem.posterior + static_cast<size_t>(first_row + row) * 2 * d;
            float sum = 0.0f;
            for (int j = lane; j < d; j += 32) {
                const float mu = __ldcg(posterior + j), logvar = __ldcg(posterior + d + j);
                sum += fmaf(mu, mu, expm1f(logvar) - logvar);
            }
            sum = warp_sum(sum);
            if (lane == 0) problem.divergence[first_row + row] = 0.5f * sum;
        }
    }
    if (problem.down != nullptr) {
        for (int draw = 0; draw < draws; ++draw) decode_gated(problem, latents, partial, first_row, rows, draw);
        return;
    }
    for (int item = warp; item < rows * draws; item += WARPS) {
        const int row = first_row + item / draws;
        float sum = 0.0f;
        each_latent(
            problem.posterior + static_cast<size_t>(row) * 2 * d, d, problem.noise, row, item % draws, lane, 32,
            [&](int j, float s, float) { sum = fmaf(s, problem.decode[j], sum); }
        );
        sum = warp_sum(sum);
        if (lane == 0) problem.rewards[static_cast<size_t>(row) * draws + item % draws] = sum;
    }
}

}  // namespace inform_head

using namespace inform_head;

extern "C" __global__ void __launch_bounds__(THREADS) inform_head_forward(
    float* rewards, float* posterior, float* divergence, unsigned* arrived, const float* x, const int* index, const float* scale,
    const bf16* encode, const bf16* encode_rest, const float* decode, const float* down, int rows, int hidden, int latent_dim,
    int draws, int share_noise, unsigned long long seed, unsigned long long stream, float epsilon
) {
    DYNAMIC_SHARED(float, latents);
    __shared__ Stage stage;
    __shared__ float partial[WARPS][ROWS];
    __shared__ bool is_last;
    const Problem problem{rewards, posterior, divergence, x, index, scale, encode, encode_rest, decode, down,
                          rows, hidden, latent_dim, epsilon, {seed, stream, draws, share_noise != 0}};
    inform_head::encode(problem, stage);
    // What this block wrote is seen by whoever sees its arrival.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(&arrived[blockIdx.x], 1u) == gridDim.y - 1;
        if (is_last) arrived[blockIdx.x] = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    inform_head::decode(problem, latents, partial);
}

// Elements 0 .. count of a stream: grid ceil(count / 512).
extern "C" __global__ void __launch_bounds__(THREADS) standard_normal(float* out, int count, unsigned long long seed, unsigned long long stream) {
    const int block = blockIdx.x * THREADS + threadIdx.x;
    const float4 four = standard_normal4(block, seed, stream);
    const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (block * 4 + i < count) out[block * 4 + i] = values[i];
    }
}

// Blocks of Philox as they are: grid ceil(blocks / 128). counters, out [blocks, 4], keys [blocks, 2].
extern "C" __global__ void __launch_bounds__(THREADS) philox_blocks(uint4* out, const uint4* counters, const uint2* keys, int blocks) {
    const int block = blockIdx.x * THREADS + threadIdx.x;
    if (block < blocks) out[block] = philox(counters[block], keys[block]);
}

// d loss / d posterior, and what the gradients of the decode head are sums of. draws is 0 or 1; d_divergence [rows] or null.
// latents [rows, latent_dim] are s. Gated: activations [rows, 4 latent_dim] are silu(gate s) * up s, d_units
// [rows, 8 latent_dim] the gradients of [gate s | up s]; else both null. Grid rows, 32 latent_dim bytes of dynamic shared
// memory for a gated decode, and latent_dim floats more: 36 latent_dim bytes.
extern "C" __global__ void __launch_bounds__(THREADS) inform_head_backward_latent(
    float* d_posterior, float* latents, float* activations, float* d_units, const float* posterior, const float* decode,
    const float* down, const float* d_reward, const float* d_divergence, int latent_dim, int draws, int share_noise,
    unsigned long long seed, unsigned long long stream
) {
    DYNAMIC_SHARED(float, shared);
    float* const s = shared;              // [latent_dim]
    float* const units = s + latent_dim;  // [8 latent_dim]
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = latent_dim;
    const size_t row = blockIdx.x;
    const float* const own = posterior + row * 2 * d;
    const Noise noise{seed, stream, draws, share_noise != 0};
    float* const d_mu = d_posterior + row * 2 * d;
    const float of_reward = d_reward[row], of_divergence = d_divergence == nullptr ? 0.0f : d_divergence[row];
    // d s / d logvar = sigma eps / 2 waits in the place of its gradient.
    each_latent(own, d, noise, blockIdx.x, 0, threadIdx.x, THREADS, [&](int j, float value, float step) {
        s[j] = value;
        latents[row * d + j] = value;
        d_mu[d + j] = 0.5f * step;
    });
    __syncthreads();
    if (down != nullptr) {
        for (int unit = warp; unit < 4 * d; unit += WARPS) {
            const float* const gate = decode + static_cast<size_t>(unit) * d;
            const float* const up = gate + static_cast<size_t>(4 * d) * d;
            float g = 0.0f, u = 0.0f;
            for (int j = lane; j < d; j += 32) g = fmaf(gate[j], s[j], g), u = fmaf(up[j], s[j], u);
            g = warp_sum(g), u = warp_sum(u);
            if (lane != 0) continue;
            const float slope = sigmoid(g), silu = g * slope, from = of_reward * down[unit];
            activations[row * 4 * d + unit] = silu * u;
            units[unit] = from * u * slope * (1.0f + g * (1.0f - slope));
            units[4 * d + unit] = from * silu;
            d_units[row * 8 * d + unit] = units[unit];
            d_units[row * 8 * d + 4 * d + unit] = units[4 * d + unit];
        }
        __syncthreads();
    }
    for (int j = threadIdx.x; j < d; j += THREADS) {
        float of_latent = down == nullptr ? of_reward * decode[j] : 0.0f;
        if (down != nullptr) {
            for (int unit = 0; unit < 8 * d; ++unit) of_latent = fmaf(units[unit], decode[static_cast<size_t>(unit) * d + j], of_latent);
        }
        d_mu[d + j] = fmaf(d_mu[d + j], of_latent, 0.5f * of_divergence * expm1f(own[d + j]));
        d_mu[j] = fmaf(of_divergence, own[j], of_latent);
    }
}

// d loss / d x [rows, hidden] (the pooled rows), d_normed [rows, hidden] = d loss / d h, and whitened = x / sqrt(mean(x^2) + epsilon)
// (x itself where scale is null). Grid rows.
extern "C" __global__ void __launch_bounds__(THREADS) inform_head_backward_input(
    float* d_x, float* d_normed, float* whitened, const float* x, const int* index, const float* scale, const bf16* encode,
    const bf16* encode_rest, const float* d_posterior, int hidden, int latent_dim, float epsilon
) {
    __shared__ float partial[WARPS];
    const size_t row = blockIdx.x;
    const float* const from = x + static_cast<size_t>(index == nullptr ? blockIdx.x : index[blockIdx.x]) * hidden;
    const float* const gradient = d_posterior + row * 2 * latent_dim;
    const float inverse = scale == nullptr ? 1.0f : inverse_size(from, hidden, epsilon);
    float along = 0.0f;
    for (int column = threadIdx.x; column < hidden; column += THREADS) {
        float sum = 0.0f;
        for (int output = 0; output < 2 * latent_dim; ++output) {
            const size_t at = static_cast<size_t>(output) * hidden + column;
            float weight = __bfloat162float(encode[at]);
            if (encode_rest != nullptr) weight += __bfloat162float(encode_rest[at]);
            sum = fmaf(gradient[output], weight, sum);
        }
        const float white = from[column] * inverse;
        d_normed[row * hidden + column] = sum;
        whitened[row * hidden + column] = white;
        if (scale == nullptr) {
            d_x[row * hidden + column] = sum;
        } else {
            along = fmaf(sum * scale[column], white, along);
        }
    }
    if (scale == nullptr) return;
    along = warp_sum(along);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = along;
    __syncthreads();
    along = (partial[0] + partial[1] + partial[2] + partial[3]) / hidden;
    for (int column = threadIdx.x; column < hidden; column += THREADS) {
        const size_t at = row * hidden + column;
        d_x[at] = inverse * (d_normed[at] * scale[column] - whitened[at] * along);
    }
}

// d loss / d scale [hidden] = sum over rows of d_normed * whitened: grid ceil(hidden / 128).
extern "C" __global__ void __launch_bounds__(THREADS) inform_head_backward_scale(
    float* d_scale, const float* d_normed, const float* whitened, int rows, int hidden
) {
    const int column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= hidden) return;
    float sum = 0.0f;
    for (int row = 0; row < rows; ++row) {
        const size_t at = static_cast<size_t>(row) * hidden + column;
        sum = fmaf(d_normed[at], whitened[at], sum);
    }
    d_scale[column] = sum;
}

// The gradient of a weight [outputs, columns]: factor * sum over rows of gradients^T inputs. gradients [rows, outputs], inputs
// [rows, columns], factor [columns] or null. encode: d_posterior, whitened, scale; decode: d_units and latents, or d_reward and
// latents; down: d_reward and activations. Grid (ceil(columns / 128), ceil(outputs / 8)).
extern "C" __global__ void __launch_bounds__(THREADS) inform_head_backward_weight(
    float* d_weight, const float* gradients, const float* inputs, const float* factor, int rows, int outputs, int columns
) {
    constexpr int OUTPUTS = 8;
    const int column = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * OUTPUTS;
    if (column >= columns) return;
    float sums[OUTPUTS] = {};
    for (int row = 0; row < rows; ++row) {
        const float input = inputs[static_cast<size_t>(row) * columns + column];
        const float* const gradient = gradients + static_cast<size_t>(row) * outputs + first;
#pragma unroll
        for (int i = 0; i < OUTPUTS; ++i) {
            if (first + i < outputs) sums[i] = fmaf(gradient[i], input, sums[i]);
        }
    }
    const float scale = factor == nullptr ? 1.0f : factor[column];
#pragma unroll
    for (int i = 0; i < OUTPUTS; ++i) {
        if (first + i < outputs) d_weight[static_cast<size_t>(first + i) * columns + column] = sums[i] * scale;
    }
}
