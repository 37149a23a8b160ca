// Rotary embedding of queries and keys, and the rounding of queries, keys and values to bf16.
//
// For each rotated head and i < head_dim / 2, with c and s the cosine and sine of the row's position and of i:
//   out[i] = x[i] c - x[i + head_dim / 2] s,   out[i + head_dim / 2] = x[i + head_dim / 2] c + x[i] s.
// The plain heads, the values, are rounded only.
//
// Shapes    x f32 and out bf16 [rows, (rotated_heads + plain_heads) * head_dim], on 16 and 8 bytes; head_dim a multiple
//           of 8. cosines, sines [positions, head_dim / 2] f32 on 16 bytes; positions [rows].
// Launch    grid rows, 128 threads, no dynamic shared memory.
// Memory    floor: 6 bytes an element. The tables come from the second-level cache: a row of them serves all heads.
// FLOP      3 an element: bound by memory.
//
// Tile      a block a row: its position is read once, a thread takes 4 pairs with loads of 16 bytes.
// Source    RoPE: Su et al. 2021, in the order of Hugging Face's Llama. The tables are the host's, so that powers and
//           angles round as they do on the CPU.
//
// Each element is computed alone: its bits depend on its row only.

#include "common.cuh"

namespace rotary {

constexpr int THREADS = 128;

__device__ __forceinline__ void store4(bf16* to, float a, float b, float c, float d) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(a, b), pack_bf16(c, d));
}

}  // namespace rotary

extern "C" __global__ void __launch_bounds__(rotary::THREADS) rotary_embedding(
    bf16* out, const float* x, const float* cosines, const float* sines, const int* positions, int rotated_heads,
    int plain_heads, int head_dim
) {
    const int half = head_dim / 2;
    const size_t start = static_cast<size_t>(blockIdx.x) * (rotated_heads + plain_heads) * head_dim;
    const float* const cosine = cosines + static_cast<size_t>(positions[blockIdx.x]) * half;
    const float* const sine = sines + static_cast<size_t>(positions[blockIdx.x]) * half;
    for (int four = threadIdx.x; four < rotated_heads * half / 4; four += rotary::THREADS) {
        const int head = four / (half / 4), i = four % (half / 4) * 4;
        const size_t first = start + static_cast<size_t>(head) * head_dim + i;
        const float4 a = *reinterpret_cast<const float4*>(x + first);
        const float4 b = *reinterpret_cast<const float4*>(x + first + half);
        const float4 c = *reinterpret_cast<const float4*>(cosine + i);
        const float4 s = *reinterpret_cast<const float4*>(sine + i);
        rotary::store4(out + first, a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y, a.z * c.z - b.z * s.z, a.w * c.w - b.w * s.w);
        rotary::store4(out + first + half, b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y, b.z * c.z + a.z * s.z, b.w * c.w + a.w * s.w);
    }
    const size_t plain = start + static_cast<size_t>(rotated_heads) * head_dim;
    for (int column = threadIdx.x * 4; column < plain_heads * head_dim; column += rotary::THREADS * 4) {
        const float4 v = *reinterpret_cast<const float4*>(x + plain + column);
        rotary::store4(out + plain + column, v.x, v.y, v.z, v.w);
    }
}
