// The gate of a gated MLP: out = activation(gate) * up.
//
//   swiglu       silu(g) = g / (1 + exp(-g)), 0 below -88.7, where exp overflows (there |silu| < 2e-37)
//   geglu_erf    gelu(g) = g / 2 (1 + erf(g / sqrt 2))
//   geglu_tanh   g / 2 (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3)))
//
// Shapes    gate_up [rows, 2 inner] bf16, [gate | up], as one product of stacked weights gives it; out [rows, inner] bf16.
//           Any inner; in pieces of 16 bytes where it is a multiple of 8, for which both must lie on 16 bytes.
// Launch    grid rows, 128 threads, no dynamic shared memory.
// Memory    floor: 6 bytes an element of out.
// FLOP      10 to 30 an element, in f32: bound by memory.
//
// Tile      a block a row, 8 elements a thread. Not an epilogue of the product: that is cuBLAS's, and a product of our own
//           would have to reach it on three architectures to win the 6 bytes back.
// Source    GLU variants: Shazeer 2020; GELU: Hendrycks and Gimpel 2016.
//
// Each element is computed alone: its bits depend on its row only.

#include "common.cuh"

namespace gated_mlp {

constexpr int THREADS = 128;

struct Silu {
    static __device__ __forceinline__ float of(float g) { return g / (1.0f + expf(-g)); }
};

struct GeluErf {
    static __device__ __forceinline__ float of(float g) { return 0.5f * g * (1.0f + erff(g * 0.70710678118654752440f)); }
};

struct GeluTanh {
    static __device__ __forceinline__ float of(float g) {
        return 0.5f * g * (1.0f + tanhf(0.79788456080286535588f * fmaf(0.044715f * g * g, g, g)));
    }
};

template <typename Activation>
__device__ __forceinline__ uint32_t two(uint32_t gate, uint32_t up) {
    return pack_bf16(
        Activation::of(__uint_as_float(gate << 16)) * __uint_as_float(up << 16),
        Activation::of(__uint_as_float(gate & 0xffff0000u)) * __uint_as_float(up & 0xffff0000u)
    );
}

template <typename Activation>
__device__ __forceinline__ void row(bf16* out, const bf16* gate_up, int inner) {
    const bf16* const gate = gate_up + static_cast<size_t>(blockIdx.x) * 2 * inner;
    const bf16* const up = gate + inner;
    bf16* const to = out + static_cast<size_t>(blockIdx.x) * inner;
    if (inner % 8 == 0) {
        for (int column = threadIdx.x * 8; column < inner; column += THREADS * 8) {
            const uint4 g = *reinterpret_cast<const uint4*>(gate + column);
            const uint4 u = *reinterpret_cast<const uint4*>(up + column);
            *reinterpret_cast<uint4*>(to + column) =
                make_uint4(two<Activation>(g.x, u.x), two<Activation>(g.y, u.y), two<Activation>(g.z, u.z), two<Activation>(g.w, u.w));
        }
    } else {
        for (int column = threadIdx.x; column < inner; column += THREADS) {
            to[column] = __float2bfloat16_rn(Activation::of(__bfloat162float(gate[column])) * __bfloat162float(up[column]));
        }
    }
}

}  // namespace gated_mlp

using namespace gated_mlp;

extern "C" __global__ void __launch_bounds__(THREADS) swiglu(bf16* out, const bf16* gate_up, int inner) {
    row<Silu>(out, gate_up, inner);
}

extern "C" __global__ void __launch_bounds__(THREADS) geglu_erf(bf16* out, const bf16* gate_up, int inner) {
    row<GeluErf>(out, gate_up, inner);
}

extern "C" __global__ void __launch_bounds__(THREADS) geglu_tanh(bf16* out, const bf16* gate_up, int inner) {
    row<GeluTanh>(out, gate_up, inner);
}
