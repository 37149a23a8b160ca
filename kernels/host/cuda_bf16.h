// CUDA C++ as far as the kernels use it, for a C++17 compiler: `g++ -Ikernels/host` finds this in place of NVIDIA's
// header, and compiles kernels/*.cu as they are. engine.hpp runs them.
//
// Source: NVIDIA, CUDA C++ Programming Guide, "C++ Language Extensions"; PTX ISA for what common.cuh wraps. f32 functions are
// the C library's; nothing is contracted to a fused operation that is not written as one (-ffp-contract=off).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine.hpp"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block runs at a time, so what its threads share may be static. The section is filled with NaN before each.
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(host::dynamic_shared())

#define threadIdx (host::this_thread().index)
#define blockIdx (host::this_block().index)
#define gridDim (host::this_block().grid)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;

template <typename To, typename From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <typename T>
inline T __ldcg(const T* from) { return *from; }

struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }

inline void __syncthreads() { host::block_barrier(); }
// Blocks run one after the other: what one wrote, the next sees.
inline void __threadfence() {}

template <typename T>
inline T atomicAdd(T* at, T value) { return host::atomic([&] { const T old = *at; *at = old + value; return old; }); }
template <typename T>
inline T atomicMin(T* at, T value) { return host::atomic([&] { const T old = *at; *at = std::min(old, value); return old; }); }

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int distance) {
    if (mask != 0xffffffffu) host::fail("a shuffle of some lanes");
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const uint64_t* const lanes = host::exchange(bits);
    std::memcpy(&value, &lanes[host::this_thread().index.x % 32 ^ static_cast<unsigned>(distance)], sizeof value);
    return value;
}
