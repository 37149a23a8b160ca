// Rows by index: token embeddings, and the pooled rows of a batch.
//
//   embed_rows    out[r] = table[ids[r]]      gather_rows    out[r] = x[index[r]]
//
// Shapes    table [vocabulary, columns] bf16, x [any, columns] f32, out [rows, columns] f32; ids [rows] u32, index
//           [rows] i32, in range. Any columns; in pieces of 16 bytes of out where columns are a multiple of 4, for
//           which x and out must lie on 16 bytes, the table on 8.
// Launch    grid rows, 128 threads, no dynamic shared memory.
// Memory    floor: 6 bytes an element of an embedding, 8 of a gathered row. Nothing is computed.
//
// Tile      a block a row: its index is read once, and neighbouring threads read neighbouring pieces of it.

#include "common.cuh"

namespace rows {

constexpr int THREADS = 128;

__device__ __forceinline__ float4 four(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ __forceinline__ float4 four(const bf16* from) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    return make_float4(
        __uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
        __uint_as_float(bits.y & 0xffff0000u)
    );
}

__device__ __forceinline__ float one(float value) { return value; }
__device__ __forceinline__ float one(bf16 value) { return __bfloat162float(value); }

template <typename In>
__device__ __forceinline__ void copy(float* out, const In* from, int columns) {
    float* const to = out + static_cast<size_t>(blockIdx.x) * columns;
    if (columns % 4 == 0) {
        for (int column = threadIdx.x * 4; column < columns; column += THREADS * 4) {
            *reinterpret_cast<float4*>(to + column) = four(from + column);
        }
    } else {
        for (int column = threadIdx.x; column < columns; column += THREADS) to[column] = one(from[column]);
    }
}

}  // namespace rows

extern "C" __global__ void __launch_bounds__(rows::THREADS) embed_rows(
    float* out, const bf16* table, const uint32_t* ids, int columns
) {
    rows::copy(out, table + static_cast<size_t>(ids[blockIdx.x]) * columns, columns);
}

extern "C" __global__ void __launch_bounds__(rows::THREADS) gather_rows(
    float* out, const float* x, const int* index, int columns
) {
    rows::copy(out, x + static_cast<size_t>(index[blockIdx.x]) * columns, columns);
}
