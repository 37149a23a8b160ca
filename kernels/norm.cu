// Root-mean-square norm and layer norm of rows, with an optional residual added first.
//
// rms_norm:    y = x / sqrt(mean(x^2) + epsilon) * scale
// layer_norm:  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias
//
// Shapes    x [rows, columns] f32; residual, where it is not null, [rows, columns] bf16: then x += residual first,
//           and the sum is written to x. scale [columns] f32, bias [columns] f32 or null. out [rows, columns]
//           bf16, with the suffix _f32 f32. Any columns; in pieces of 16 bytes where columns are a multiple of 4,
//           for which x, scale, bias and an f32 out must lie on 16 bytes, residual and a bf16 out on 8.
// Launch    grid ceil(rows / 4), 128 threads, no dynamic shared memory.
// Memory    floor: 6 bytes an element (x in, y out in bf16), 12 with a residual. x is read a second time, and by layer
//           norm a third; a row of 4,096 is 16 KiB, four of them a block, so that comes from the first-level cache.
// FLOP      some 4 an element: bound by memory.
//
// Tile      one warp a row: its sums need no shared memory and no barrier, and rows of 576 (a 135M model) still
//           fill all lanes, where a block a row would leave most of 256 threads idle.
// Source    RMS norm: Zhang and Sennrich 2019; layer norm: Ba et al. 2016. The variance is of the differences from
//           the mean, not mean(x^2) - mean(x)^2, which cancels.
//
// A lane adds its elements in ascending order, and lanes are added in a tree: the order is fixed by the columns.

#include "common.cuh"

namespace norm_rows {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

template <int WIDTH>
__device__ __forceinline__ void load(float (&values)[WIDTH], const float* from) {
    if constexpr (WIDTH == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else {
        values[0] = *from;
    }
}

template <int WIDTH>
__device__ __forceinline__ void load(float (&values)[WIDTH], const bf16* from) {
    if constexpr (WIDTH == 4) {
        const uint2 four = *reinterpret_cast<const uint2*>(from);
        values[0] = __uint_as_float(four.x << 16), values[1] = __uint_as_float(four.x & 0xffff0000u);
        values[2] = __uint_as_float(four.y << 16), values[3] = __uint_as_float(four.y & 0xffff0000u);
    } else {
        values[0] = __bfloat162float(*from);
    }
}

template <int WIDTH>
__device__ __forceinline__ void store(float* to, const float (&values)[WIDTH]) {
    if constexpr (WIDTH == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
        *to = values[0];
    }
}

template <int WIDTH>
__device__ __forceinline__ void store(bf16* to, const float (&values)[WIDTH]) {
    if constexpr (WIDTH == 4) {
        *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]));
    } else {
        *to = __float2bfloat16_rn(values[0]);
    }
}

// One row, WIDTH elements of each lane at a time.
template <int WIDTH, bool CENTRED, typename Out>
__device__ __forceinline__ void row(
    Out* out, float* x, const bf16* residual, const float* scale, const float* bias, int columns, float epsilon
) {
    const int lane = threadIdx.x % 32 * WIDTH;
    float values[WIDTH];
    float sum = 0.0f;
    for (int column = lane; column < columns; column += 32 * WIDTH) {
        load(values, x + column);
        if (residual != nullptr) {
            float added[WIDTH];
            load(added, residual + column);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) values[i] += added[i];
            store(x + column, values);
        }
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) sum = CENTRED ? sum + values[i] : fmaf(values[i], values[i], sum);
    }
    sum = warp_sum(sum);
    float mean = 0.0f;
    if constexpr (CENTRED) {
        mean = sum / columns;
        sum = 0.0f;
        for (int column = lane; column < columns; column += 32 * WIDTH) {
            load(values, x + column);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) sum = fmaf(values[i] - mean, values[i] - mean, sum);
        }
        sum = warp_sum(sum);
    }
    const float inverse = 1.0f / sqrtf(sum / columns + epsilon);
    for (int column = lane; column < columns; column += 32 * WIDTH) {
        float factors[WIDTH];
        load(values, x + column);
        load(factors, scale + column);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) values[i] = (values[i] - mean) * inverse * factors[i];
        if (CENTRED && bias != nullptr) {
            load(factors, bias + column);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) values[i] += factors[i];
        }
        store(out + column, values);
    }
}

template <bool CENTRED, typename Out>
__device__ __forceinline__ void rows_of(
    Out* out, float* x, const bf16* residual, const float* scale, const float* bias, int rows, int columns, float epsilon
) {
    const int index = blockIdx.x * WARPS + threadIdx.x / 32;
    if (index >= rows) return;
    const size_t start = static_cast<size_t>(index) * columns;
    const bf16* const added = residual == nullptr ? nullptr : residual + start;
    if (columns % 4 == 0) {
        row<4, CENTRED>(out + start, x + start, added, scale, bias, columns, epsilon);
    } else {
        row<1, CENTRED>(out + start, x + start, added, scale, bias, columns, epsilon);
    }
}

}  // namespace norm_rows

using namespace norm_rows;

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(
    bf16* out, float* x, const bf16* residual, const float* scale, int rows, int columns, float epsilon
) {
    rows_of<false>(out, x, residual, scale, nullptr, rows, columns, epsilon);
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_f32(
    float* out, float* x, const bf16* residual, const float* scale, int rows, int columns, float epsilon
) {
    rows_of<false>(out, x, residual, scale, nullptr, rows, columns, epsilon);
}

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm(
    bf16* out, float* x, const bf16* residual, const float* scale, const float* bias, int rows, int columns, float epsilon
) {
    rows_of<true>(out, x, residual, scale, bias, rows, columns, epsilon);
}

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_f32(
    float* out, float* x, const bf16* residual, const float* scale, const float* bias, int rows, int columns, float epsilon
) {
    rows_of<true>(out, x, residual, scale, bias, rows, columns, epsilon);
}
