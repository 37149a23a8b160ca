// The gradient of a gated MLP's gate, out = silu(gate) * up.
//
//   d_gate = d_out * up * s * (1 + g * (1 - s))      d_up = d_out * g * s      s = 1 / (1 + exp(-g)), 0 below -88.7
//
// Shapes    gate_up, d_gate_up [rows, 2 inner] bf16, [gate | up]; d_out [rows, inner] f32. Any inner; in pieces of 16 bytes
//           where it is a multiple of 8, for which all must lie on 16 bytes.
// Launch    grid rows, 128 threads, no dynamic shared memory.
// Memory    floor: 12 bytes an element of d_out: 4 of gate and up, 4 of d_out, 4 of the gradients.
// FLOP      some 20 an element, in f32: bound by memory.
//
// Tile      a block a row, 8 elements a thread, as in gated_mlp.cu. s is computed again: to keep it would cost 4 bytes more.
// Source    GLU variants: Shazeer 2020.
//
// Finite inputs give no NaN: s * (1 + g * (1 - s)) lies within -0.1 and 1.1 for every g, since s is 0 where exp overflows
// and 1 - s is 0 where g is large. Its half is multiplied first, so that no product becomes infinite before a 0 comes.
// What is larger than bf16 holds becomes infinite. Each element is computed alone: its bits depend on its row only.

#include "common.cuh"

namespace gated_mlp_backward {

constexpr int THREADS = 128;

struct Pair {
    float gate, up;
};

__device__ __forceinline__ Pair gradient(float g, float up, float d_out) {
    const float s = 1.0f / (1.0f + expf(-g));
    const float slope = s * fmaf(g, 1.0f - s, 1.0f);
    return {2.0f * (d_out * (0.5f * slope) * up), d_out * (g * s)};
}

// Of two elements, the first in the lower half.
__device__ __forceinline__ void two(uint32_t& d_gate, uint32_t& d_up, uint32_t gate, uint32_t up, float first, float second) {
    const Pair low = gradient(__uint_as_float(gate << 16), __uint_as_float(up << 16), first);
    const Pair high = gradient(__uint_as_float(gate & 0xffff0000u), __uint_as_float(up & 0xffff0000u), second);
    d_gate = pack_bf16(low.gate, high.gate);
    d_up = pack_bf16(low.up, high.up);
}

}  // namespace gated_mlp_backward

using namespace gated_mlp_backward;

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_backward(
    bf16* d_gate_up, const float* d_out, const bf16* gate_up, int inner
) {
    const size_t row = blockIdx.x;
    const bf16* const gate = gate_up + row * 2 * inner;
    const bf16* const up = gate + inner;
    const float* const from = d_out + row * inner;
    bf16* const d_gate = d_gate_up + row * 2 * inner;
    bf16* const d_up = d_gate + inner;
    if (inner % 8 == 0) {
        for (int column = threadIdx.x * 8; column < inner; column += THREADS * 8) {
            const uint4 g = *reinterpret_cast<const uint4*>(gate + column);
            const uint4 u = *reinterpret_cast<const uint4*>(up + column);
            const float4 low = *reinterpret_cast<const float4*>(from + column);
            const float4 high = *reinterpret_cast<const float4*>(from + column + 4);
            uint4 of_gate, of_up;
            two(of_gate.x, of_up.x, g.x, u.x, low.x, low.y);
            two(of_gate.y, of_up.y, g.y, u.y, low.z, low.w);
            two(of_gate.z, of_up.z, g.z, u.z, high.x, high.y);
            two(of_gate.w, of_up.w, g.w, u.w, high.z, high.w);
            *reinterpret_cast<uint4*>(d_gate + column) = of_gate;
            *reinterpret_cast<uint4*>(d_up + column) = of_up;
        }
    } else {
        for (int column = threadIdx.x; column < inner; column += THREADS) {
            const Pair pair = gradient(__bfloat162float(gate[column]), __bfloat162float(up[column]), from[column]);
            d_gate[column] = __float2bfloat16_rn(pair.gate);
            d_up[column] = __float2bfloat16_rn(pair.up);
        }
    }
}
