// The steps of a reward head one by one, in f32: for standard heads, for given latents, and where noise is given.
// The whole of an InfoRM head in one launch is inform_head.cu.
//
//   head_linear           out[r, o] = sum_c x[r, c] weight[o, c]
//   head_swiglu           out = silu(gate) * up of [gate | up],  silu(g) = g / (1 + exp(-g))
//   head_columns          out[r, c] = x[r, start + c]
//   head_reparameterise   out = mu + exp(logvar / 2) * noise of [mu | logvar]
//
// Shapes    all f32, any sizes. head_linear: x [rows, columns], weight [outputs, columns], out [rows, outputs];
//           head_swiglu: gate_up [rows, 2 inner], out [rows, inner]; head_columns: x [rows, x_columns], out [rows, count];
//           head_reparameterise: posterior [rows, 2 latent_dim], noise and out [rows, latent_dim].
// Launch    128 threads, no dynamic shared memory; grid (rows, ceil(outputs / 4)) for head_linear, else rows.
// Memory    head_linear reads a row of x and of the weight for each output, from the second-level cache in the main: a head
//           has few outputs or a batch few sequences. Floor: 4 (rows + outputs) columns bytes.
// FLOP      2 rows outputs columns.
//
// Tile      a warp an output, so a sum needs no shared memory and no barrier; f32 throughout, since a head costs next to
//           nothing beside its backbone and rewards are compared to the last digit.
//
// A lane adds its products in ascending order, and lanes are added in a tree: the order is fixed by the columns.

#include "common.cuh"

namespace head {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;

}  // namespace head

extern "C" __global__ void __launch_bounds__(head::THREADS) head_linear(
    float* out, const float* x, const float* weight, int outputs, int columns
) {
    const int output = blockIdx.y * head::WARPS + threadIdx.x / 32;
    if (output >= outputs) return;
    const float* const row = x + static_cast<size_t>(blockIdx.x) * columns;
    const float* const factors = weight + static_cast<size_t>(output) * columns;
    float sum = 0.0f;
    for (int column = threadIdx.x % 32; column < columns; column += 32) sum = fmaf(row[column], factors[column], sum);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (threadIdx.x % 32 == 0) out[static_cast<size_t>(blockIdx.x) * outputs + output] = sum;
}

extern "C" __global__ void __launch_bounds__(head::THREADS) head_swiglu(float* out, const float* gate_up, int inner) {
    const float* const gate = gate_up + static_cast<size_t>(blockIdx.x) * 2 * inner;
    float* const to = out + static_cast<size_t>(blockIdx.x) * inner;
    for (int column = threadIdx.x; column < inner; column += head::THREADS) {
        to[column] = gate[column] / (1.0f + expf(-gate[column])) * gate[inner + column];
    }
}

extern "C" __global__ void __launch_bounds__(head::THREADS) head_columns(
    float* out, const float* x, int start, int count, int x_columns
) {
    const float* const from = x + static_cast<size_t>(blockIdx.x) * x_columns + start;
    float* const to = out + static_cast<size_t>(blockIdx.x) * count;
    for (int column = threadIdx.x; column < count; column += head::THREADS) to[column] = from[column];
}

extern "C" __global__ void __launch_bounds__(head::THREADS) head_reparameterise(
    float* out, const float* posterior, const float* noise, int latent_dim
) {
    const float* const mu = posterior + static_cast<size_t>(blockIdx.x) * 2 * latent_dim;
    const size_t start = static_cast<size_t>(blockIdx.x) * latent_dim;
    for (int j = threadIdx.x; j < latent_dim; j += head::THREADS) {
        out[start + j] = fmaf(expf(0.5f * mu[latent_dim + j]), noise[start + j], mu[j]);
    }
}
