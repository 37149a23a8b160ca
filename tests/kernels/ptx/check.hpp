// What the tests of the kernels' PTX share.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#if defined(KERNELS_ON_HOST)
#include "../host/machine.hpp"
#else
#include "machine.hpp"
#endif

// One rounding to nearest, relative: of bf16 (8 significant bits) and of f32 (24).
constexpr double BF16_UNIT = 0x1p-8;
constexpr double F32_UNIT = 0x1p-24;

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr uint16_t BF16_NAN = 0x7fc0;

struct Random {
    std::mt19937_64 engine;
    explicit Random(uint64_t seed) : engine(seed) {}
    int between(int least, int most) { return std::uniform_int_distribution<int>(least, most)(engine); }
    bool chance(double p) { return std::bernoulli_distribution(p)(engine); }
    float normal() { return std::normal_distribution<float>()(engine); }
};

template <typename T>
void allow(ptx::Machine& machine, const std::vector<T>& values) {
    machine.allow(values.data(), values.size() * sizeof(T));
}

[[noreturn]] inline void wrong(const std::string& message) {
    std::printf("FAILED %s\n", message.c_str());
    std::exit(1);
}
