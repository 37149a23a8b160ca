// A step of the optimiser, and the two passes over flat arrays that go with it: the norm of the gradients and the values rounded
// to what products read.
//
//   adamw             g = gradient * clip
//                     first = beta1 * first + (1 - beta1) * g
//                     second = beta2 * second + (1 - beta2) * g * g
//                     values = values * keep - rate * first / (sqrt(second) / root_correction + epsilon)
//                     rounded = bf16(values)
//   sum_of_squares    parts[b] = sum of x^2 over the pieces of block b, in f64
//   round_values      out = bf16(factor * x)
//
// Shapes    all flat, [count], f32, rounded and out bf16; rounded may be null; parts [grid] f64, whose sum the host takes. All but
//           parts on 16 bytes. Any count, beyond 2^31 too.
// Launch    grid min(ceil(count / 1024), 4096), 128 threads, no dynamic shared memory.
// Memory    floor, bytes an element: adamw 30 (28 where rounded is null), sum_of_squares 4, round_values 6.
// FLOP      some 15 of adamw, 2 of the others: bound by memory.
//
// Tile      8 elements of a thread at a time: 16 bytes of bf16, and of adamw's gradient and state 128 bytes in flight. 4,096
//           blocks are more than any device holds at once, so more would only add partial sums.
// Source    AdamW: Loshchilov and Hutter 2019. rate and root_correction have the moments' start at 0 in them, keep the decay
//           of the weights.
//
// adamw rounds every product and sum by itself, as src/train/optimiser.rs does: the bits are the CPU's. A part of
// sum_of_squares is the sum of a block's threads in a tree, each in ascending order: it depends on count and grid alone. A
// square is exact in f64.

#include "common.cuh"

namespace adamw_step {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int PIECE = 8;

struct Settings {
    float keep, clip, beta1, beta2, rate, root_correction, epsilon;
};

// A product that is rounded: never one half of a fused operation.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }

__device__ __forceinline__ void step(float& value, float& first, float& second, float gradient, const Settings& settings) {
    const float g = product(gradient, settings.clip);
    first = product(settings.beta1, first) + product(1.0f - settings.beta1, g);
    second = product(settings.beta2, second) + product(product(1.0f - settings.beta2, g), g);
    const float root = sqrtf(second) / settings.root_correction + settings.epsilon;
    value = product(value, settings.keep) - product(settings.rate, first) / root;
}

__device__ __forceinline__ void load(float (&values)[PIECE], const float* from) {
    const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}

__device__ __forceinline__ void store(float* to, const float (&values)[PIECE]) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
    *reinterpret_cast<float4*>(to + 4) = make_float4(values[4], values[5], values[6], values[7]);
}

__device__ __forceinline__ void store(bf16* to, const float (&values)[PIECE]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(
        pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]), pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7])
    );
}

// Calls `whole(i)` for this thread's pieces of 8, `single(i)` for the elements after the last whole one.
template <typename Whole, typename Single>
__device__ __forceinline__ void each_piece(long long count, Whole whole, Single single) {
    const long long stride = static_cast<long long>(gridDim.x) * THREADS * PIECE;
    for (long long i = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * PIECE; i < count; i += stride) {
        if (i + PIECE <= count) {
            whole(i);
        } else {
            for (long long j = i; j < count; ++j) single(j);
        }
    }
}

}  // namespace adamw_step

using namespace adamw_step;

extern "C" __global__ void __launch_bounds__(THREADS) adamw(
    float* values, bf16* rounded, float* first, float* second, const float* gradient, long long count, float keep, float clip,
    float beta1, float beta2, float rate, float root_correction, float epsilon
) {
    const Settings settings{keep, clip, beta1, beta2, rate, root_correction, epsilon};
    each_piece(
        count,
        [&](long long i) {
            float value[PIECE], mean[PIECE], square[PIECE], slope[PIECE];
            load(value, values + i), load(mean, first + i), load(square, second + i), load(slope, gradient + i);
#pragma unroll
            for (int j = 0; j < PIECE; ++j) step(value[j], mean[j], square[j], slope[j], settings);
            store(values + i, value), store(first + i, mean), store(second + i, square);
            if (rounded != nullptr) store(rounded + i, value);
        },
        [&](long long i) {
            step(values[i], first[i], second[i], gradient[i], settings);
            if (rounded != nullptr) rounded[i] = __float2bfloat16_rn(values[i]);
        }
    );
}

extern "C" __global__ void __launch_bounds__(THREADS) sum_of_squares(double* parts, const float* x, long long count) {
    __shared__ double partial[WARPS];
    double sum = 0.0;
    each_piece(
        count,
        [&](long long i) {
            float value[PIECE];
            load(value, x + i);
#pragma unroll
            for (int j = 0; j < PIECE; ++j) sum += static_cast<double>(value[j]) * value[j];
        },
        [&](long long i) { sum += static_cast<double>(x[i]) * x[i]; }
    );
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) parts[blockIdx.x] = partial[0] + partial[1] + partial[2] + partial[3];
}

extern "C" __global__ void __launch_bounds__(THREADS) round_values(bf16* out, const float* x, float factor, long long count) {
    each_piece(
        count,
        [&](long long i) {
            float value[PIECE];
            load(value, x + i);
#pragma unroll
            for (int j = 0; j < PIECE; ++j) value[j] *= factor;
            store(out + i, value);
        },
        [&](long long i) { out[i] = __float2bfloat16_rn(factor * x[i]); }
    );
}
