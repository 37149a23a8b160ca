// What common.cuh writes as inline PTX.
#pragma once

inline uint64_t shared_address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

// The destination is destroyed now and written when it is waited for: the earliest and the latest that PTX allows.
inline void cp_async_16(void* to, const void* from, bool exists) {
    const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
    if (!aligned(to) || (exists && !aligned(from))) host::fail("cp.async off its 16 bytes");
    std::memset(to, 0xff, 16);
    host::copy_later({to, from, exists});
}
inline void cp_async_commit() { host::commit_copies(); }
template <int PENDING>
inline void cp_async_wait() {
    for (const host::Copy& copy : host::due_copies(PENDING)) {
        static const uint64_t zeros[2] = {0, 0};
        std::memcpy(copy.to, copy.exists ? copy.from : zeros, 16);
    }
}

// Lane l receives elements 2 (l % 4) and the next of row l / 4 of each matrix; the row of matrix m is where lane 8 m + row points.
inline void ldmatrix_x4(uint32_t (&matrices)[4], const void* row) {
    const uint64_t* const rows = host::exchange(shared_address(row));
    const unsigned lane = host::this_thread().index.x % 32;
    for (unsigned m = 0; m < 4; ++m) {
        std::memcpy(&matrices[m], reinterpret_cast<const uint16_t*>(rows[8 * m + lane / 4]) + 2 * (lane % 4), 4);
    }
}

inline void ldmatrix_x4_transposed(uint32_t (&matrices)[4], const void* row) {
    const uint64_t* const rows = host::exchange(shared_address(row));
    const unsigned lane = host::this_thread().index.x % 32;
    for (unsigned m = 0; m < 4; ++m) {
        const unsigned first = 8 * m + 2 * (lane % 4);
        const uint32_t low = reinterpret_cast<const uint16_t*>(rows[first])[lane / 4];
        const uint32_t high = reinterpret_cast<const uint16_t*>(rows[first + 1])[lane / 4];
        matrices[m] = low | high << 16;
    }
}

// mma.m16n8k16: a register i of lane l holds row l / 4 + 8 (i % 2), inner 2 (l % 4) + 8 (i / 2) and the next; b register i inner
// 2 (l % 4) + 8 i and the next of column l / 4; sums i row l / 4 + 8 (i / 2), column 2 (l % 4) + i % 2.
inline void mma_bf16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint64_t* const low = host::exchange(static_cast<uint64_t>(a[1]) << 32 | a[0]);
    const uint64_t* const high = host::exchange(static_cast<uint64_t>(a[3]) << 32 | a[2]);
    const uint64_t* const b = host::exchange(static_cast<uint64_t>(b1) << 32 | b0);
    const unsigned lane = host::this_thread().index.x % 32;
    const auto element = [](uint64_t registers, unsigned which, unsigned half) {
        return __uint_as_float(static_cast<uint32_t>(registers >> (32 * which + 16 * half) & 0xffff) << 16);
    };
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4, column = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 16; ++k) {
            const uint64_t* const of_a = k < 8 ? low : high;
            const float left = element(of_a[row * 4 + k % 8 / 2], i / 2, k % 2);
            const float right = element(b[column * 4 + k % 8 / 2], k / 8, k % 2);
            sums[i] = std::fma(left, right, sums[i]);
        }
    }
}
