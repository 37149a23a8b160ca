// Noise by number: element e of a stream is the same on every device and in every launch (src/ops/batch/noise.rs).
//
// Source: Philox4x32-10, Salmon et al. 2011; Box and Muller 1958.
#pragma once

#include <stdint.h>

// One block: four independent words.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        if (round > 0) key.x += 0x9E3779B9u, key.y += 0xBB67AE85u;
        const uint32_t first = counter.x * 0xD2511F53u, second = counter.z * 0xCD9E8D57u;
        counter = make_uint4(
            __umulhi(counter.z, 0xCD9E8D57u) ^ counter.y ^ key.x, second, __umulhi(counter.x, 0xD2511F53u) ^ counter.w ^ key.y, first
        );
    }
    return counter;
}

// Sine and cosine of 2^-32 turns. The turn is cut at the eighths exactly; the series end below 2^-53.
__device__ __forceinline__ double2 sine_cosine(uint32_t turn) {
    const uint32_t quarter = (turn + (1u << 29)) >> 30;
    const double t = static_cast<int32_t>(turn - (quarter << 30)) * 1.4629180792671596e-09;  // 2 pi / 2^32
    const double t2 = t * t;
    double sine = -1.0 / 1307674368000.0, cosine = -1.0 / 87178291200.0;
    sine = fma(sine, t2, 1.0 / 6227020800.0), cosine = fma(cosine, t2, 1.0 / 479001600.0);
    sine = fma(sine, t2, -1.0 / 39916800.0), cosine = fma(cosine, t2, -1.0 / 3628800.0);
    sine = fma(sine, t2, 1.0 / 362880.0), cosine = fma(cosine, t2, 1.0 / 40320.0);
    sine = fma(sine, t2, -1.0 / 5040.0), cosine = fma(cosine, t2, -1.0 / 720.0);
    sine = fma(sine, t2, 1.0 / 120.0), cosine = fma(cosine, t2, 1.0 / 24.0);
    sine = fma(sine, t2, -1.0 / 6.0), cosine = fma(cosine, t2, -0.5);
    sine = fma(sine * t2, t, t), cosine = fma(cosine, t2, 1.0);
    const bool swapped = quarter % 2 == 1;
    const double s = swapped ? cosine : sine, c = swapped ? sine : cosine;
    return make_double2(quarter == 2 || quarter == 3 ? -s : s, quarter == 1 || quarter == 2 ? -c : c);
}

// Two standard normal numbers. In f64, as on the host, from which they differ by less than 1e-14 before their rounding
// to f32: at most one unit in the last place.
__device__ __forceinline__ float2 box_muller(uint32_t size, uint32_t turn) {
    const double uniform = (static_cast<double>(size) + 1.0) * 0x1p-32;
    const double radius = sqrt(-2.0 * log(uniform));
    const double2 direction = sine_cosine(turn);
    return make_float2(static_cast<float>(radius * direction.y), static_cast<float>(radius * direction.x));
}

// Elements 4 block .. 4 block + 3 of a stream.
__device__ __forceinline__ float4 standard_normal4(unsigned long long block, unsigned long long seed, unsigned long long stream) {
    const uint4 counter = make_uint4(
        static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)
    );
    const uint4 bits = philox(counter, make_uint2(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)));
    const float2 a = box_muller(bits.x, bits.y), b = box_muller(bits.z, bits.w);
    return make_float4(a.x, a.y, b.x, b.y);
}
