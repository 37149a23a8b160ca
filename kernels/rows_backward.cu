// Rows added by index: the gradient of gathering rows, and of an embedding.
//
//   add_rows    out[targets[b]] += sum over i from starts[b] to starts[b + 1] of x[sources[i]]
//
// Shapes    out [any, columns] f32, x [any, columns] f32; targets [count] i32, all different, starts [count + 1] i32
//           ascending, sources [starts[count]] i32, in range. Any columns; in pieces of 16 bytes where columns are a multiple of
//           4, for which x and out must lie on 16 bytes.
// Launch    grid count or (count, any), 128 threads, no dynamic shared memory. The blocks of a column share a row's
//           pieces of 512 elements: (count, ceil(columns / 512)) where few targets have many sources.
// Memory    floor: 4 bytes an element of each source, 8 of each target.
// FLOP      1 an element of a source.
//
// Tile      a block a target: nobody else writes its row, so no atomic operation is needed, which would add in any order.
//           The host sorts the sources by target. 8 sources are read before the first is added: a frequent token has
//           thousands, and one after the other each would wait for memory.
//
// A sum begins at 0, has its sources in their order, and is added to out last: its bits do not depend on the grid.

#include "common.cuh"

namespace rows_backward {

constexpr int THREADS = 128;
constexpr int AHEAD = 8;
// An SM: without it ptxas takes fewer registers, and then waits for two or three sources at a time.
constexpr int BLOCKS = 8;

__device__ __forceinline__ float plus(float a, float b) { return a + b; }
__device__ __forceinline__ float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// Rows of `pieces` of one element or of four.
template <typename Piece>
__device__ __forceinline__ void add(float* out, const float* x, const int* sources, int begin, int end, int pieces) {
    Piece* const to = reinterpret_cast<Piece*>(out);
    const Piece* const from = reinterpret_cast<const Piece*>(x);
    for (int piece = blockIdx.y * THREADS + threadIdx.x; piece < pieces; piece += gridDim.y * THREADS) {
        Piece sum{};
        int i = begin;
        for (; i + AHEAD <= end; i += AHEAD) {
            Piece added[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) added[j] = from[static_cast<size_t>(sources[i + j]) * pieces + piece];
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) sum = plus(sum, added[j]);
        }
#pragma unroll 1
        for (; i < end; ++i) sum = plus(sum, from[static_cast<size_t>(sources[i]) * pieces + piece]);
        to[piece] = plus(to[piece], sum);
    }
}

}  // namespace rows_backward

using namespace rows_backward;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) add_rows(
    float* out, const float* x, const int* targets, const int* starts, const int* sources, int columns
) {
    const int begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    if (begin == end) return;
    float* const to = out + static_cast<size_t>(targets[blockIdx.x]) * columns;
    if (columns % 4 == 0) {
        add<float4>(to, x, sources, begin, end, columns / 4);
    } else {
        add<float>(to, x, sources, begin, end, columns);
    }
}
