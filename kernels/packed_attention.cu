// Causal grouped-query attention over packed sequences with shared prefixes.
//
// out[r, h] = sum_j w_j v[row(j), h / group],  w = softmax_j(cap(scale * q[r, h] . k[row(j), h / group]))
// over the positions j <= position(r), and j > position(r) - window where there is a window; cap(s) is
// soft_cap * tanh(s / soft_cap) where there is a cap. row(j) is the packed row of the token at position j of
// the query's sequence: common prefixes are packed once, so it is found along the path of stretches from
// the first position to the query's own segment.
//
// Shapes    q, out [rows, heads * head_dim], k, v [rows, key_value_heads * head_dim], bf16, rows
//           q_stride, out_stride and key_value_stride elements apart (multiples of 8; k and v on 16 bytes, q
//           and out on 4), so that all may lie in one fused projection. head_dim is 16, 32, 48, 64, 80, 96 or 128.
//           tiles [tiles]        {row of the first query, queries, position of the first, path}: queries at
//                                consecutive rows and positions of one segment, at most 64 / group.
//           path_starts [paths + 1]   where each path begins in `stretches`.
//           stretches            {packed row, position} of the first token of each segment of a path, in
//                                ascending positions from 0; each ends where the next begins. A path
//                                is a segment's ancestors and itself, so one path serves all its tiles.
// Launch    grid (tiles, key_value_heads), 128 threads, SHARED_BYTES<head_dim> dynamic shared memory.
// Memory    floor: q and out once, k and v of the batch once: 4 * rows * (heads + key_value_heads) * head_dim
//           bytes. Each tile reads its keys and values again, from the second-level cache in
//           the main: 4 * head_dim * (keys seen) bytes for 64 * (keys seen) * head_dim * 4 FLOP.
// FLOP      4 * head_dim * heads * sum over queries of the positions seen.
//
// Tile      64 rows of queries x 64 keys, 4 warps of 16 rows. The rows are (query, head of the group) pairs, the
//           head fastest, so a key block is read once for the whole group and few queries make a full tile.
//           64 keys: two stages of keys and values take 36 to 68 KiB, at least two blocks an SM on sm_80; the
//           queries, the 64 scores and the head_dim sums of a row stay in registers. Rows of shared memory are
//           padded by 16 bytes: an odd number of 16-byte lanes, so the 8 rows of an ldmatrix hit all banks.
// Source    online softmax: Milakov and Gimelshein 2018; tiling, register layout and unnormalised sums:
//           FlashAttention-2 (Dao 2023), algorithm 1; fragments: PTX ISA, mma.m16n8k16.
//
// Bits of a row depend on its own query and its positions' keys and values only. Key blocks begin at
// absolute positions 0, 64, 128, ..., whatever segments they are read from, so a key meets the same lane
// of the same product always. A block of which a row sees nothing leaves its maximum, and adds zeros
// to its sums: the number of blocks that its tile walks does not matter. (A sum of -0 becomes +0 by
// that; the last line adds +0 to all.) No key beyond the tile's last position is read.

#include "common.cuh"

namespace packed_attention {

constexpr int KEY_BLOCK = 64;
constexpr int THREADS = 128;  // 4 warps of 16 rows
constexpr int STAGES = 2;
constexpr float LOG2_E = 1.44269504088896340736f;

template <int HEAD_DIM>
constexpr int ROW_STRIDE = HEAD_DIM + 8;

template <int HEAD_DIM>
constexpr int SHARED_BYTES = STAGES * 2 * KEY_BLOCK * ROW_STRIDE<HEAD_DIM> * 2;

// Threads that fetch one row of a head in 16-byte pieces: as many as divide it evenly.
template <int HEAD_DIM>
constexpr int LANES_PER_KEY = HEAD_DIM / 8 % 8 == 0 ? 8 : HEAD_DIM / 8 % 4 == 0 ? 4 : 2;

struct Problem {
    bf16* out;
    const bf16* q;
    const bf16* k;
    const bf16* v;
    const int4* tiles;
    const int* path_starts;
    const int2* stretches;
    int out_stride;
    int q_stride;
    int key_value_stride;
    int group;
    int window;      // positions that a query sees, itself included; 0: all
    float scale;     // above zero
    float soft_cap;  // 0: none
};

// The packed row of ascending positions along a path.
struct PathCursor {
    const int2* stretch;
    const int2* end;

    __device__ int row_of(int position) {
        while (stretch + 1 < end && stretch[1].y <= position) ++stretch;
        return stretch->x + position - stretch->y;
    }
};

template <int HEAD_DIM>
__device__ __forceinline__ void attend(const Problem& problem, bf16* shared) {
    constexpr int STRIDE = ROW_STRIDE<HEAD_DIM>;
    constexpr int DEPTH_STEPS = HEAD_DIM / 16;
    constexpr int LANES = LANES_PER_KEY<HEAD_DIM>;
    constexpr int KEYS_A_PASS = THREADS / LANES;

    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const int quad = lane / 4;
    const int pair = lane % 4 * 2;
    const int group = problem.group;

    const int4 tile = problem.tiles[blockIdx.x];
    const int first_row = tile.x, queries = tile.y, first_position = tile.z;
    const int last_position = first_position + queries - 1;
    const int first_seen = problem.window > 0 ? max(0, first_position - problem.window + 1) : 0;
    const int begin = first_seen / KEY_BLOCK;
    const int end = last_position / KEY_BLOCK + 1;

    PathCursor path{
        problem.stretches + problem.path_starts[tile.w],
        problem.stretches + problem.path_starts[tile.w + 1],
    };
    const bf16* k = problem.k + blockIdx.y * HEAD_DIM;
    const bf16* v = problem.v + blockIdx.y * HEAD_DIM;
    bf16* const stages = shared;
    constexpr int BLOCK_ELEMENTS = KEY_BLOCK * STRIDE;

    // Starts the copies of a block; blocks come in ascending order.
    auto fetch = [&](int block, int stage) {
        bf16* keys = stages + stage * 2 * BLOCK_ELEMENTS;
        bf16* values = keys + BLOCK_ELEMENTS;
#pragma unroll
        for (int pass = 0; pass < KEY_BLOCK / KEYS_A_PASS; ++pass) {
            const int key = pass * KEYS_A_PASS + threadIdx.x / LANES;
            const int position = block * KEY_BLOCK + key;
            const bool exists = position <= last_position;
            const size_t row = exists ? path.row_of(position) : 0;
#pragma unroll
            for (int part = 0; part < HEAD_DIM / 8 / LANES; ++part) {
                const int column = (part * LANES + threadIdx.x % LANES) * 8;
                const size_t source = row * problem.key_value_stride + column;
                cp_async_16(keys + key * STRIDE + column, k + source, exists);
                cp_async_16(values + key * STRIDE + column, v + source, exists);
            }
        }
    };

    // This thread's two rows of the tile, and their positions. Rows that hold no query repeat the last one's.
    bool holds[2];
    int position[2];
    size_t query_row[2];
    int column[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + half * 8 + quad;
        const int query = min(row / group, queries - 1);
        holds[half] = row / group < queries;
        position[half] = first_position + query;
        query_row[half] = first_row + query;
        column[half] = (blockIdx.y * group + row % group) * HEAD_DIM;
    }
    const int warp_first = first_position + min(warp * 16 / group, queries - 1);
    const int warp_last = first_position + min((warp * 16 + 15) / group, queries - 1);

    fetch(begin, 0);
    cp_async_commit();

    uint32_t asking[DEPTH_STEPS][4];
#pragma unroll
    for (int step = 0; step < DEPTH_STEPS; ++step) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            const int half = part % 2;
            const bf16* from = problem.q + query_row[half] * problem.q_stride + column[half];
            asking[step][part] =
                *reinterpret_cast<const uint32_t*>(from + step * 16 + part / 2 * 8 + pair);
        }
    }

    float sums[HEAD_DIM / 8][4] = {};
    float maximum[2] = {-INFINITY, -INFINITY};
    float weight[2] = {0.0f, 0.0f};  // of this thread's columns
    const bool capped = problem.soft_cap > 0.0f;
    const float to_log2 = capped ? LOG2_E : problem.scale * LOG2_E;
    const float inner = capped ? 2.0f * LOG2_E * problem.scale / problem.soft_cap : 0.0f;

    for (int block = begin; block < end; ++block) {
        const int stage = (block - begin) % STAGES;
        if (block + 1 < end) fetch(block + 1, (stage + 1) % STAGES);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        const int first_key = block * KEY_BLOCK;
        const int last_key = first_key + KEY_BLOCK - 1;
        if (first_key <= warp_last) {
            const bf16* keys = stages + stage * 2 * BLOCK_ELEMENTS;
            const bf16* values = keys + BLOCK_ELEMENTS;

            float scores[KEY_BLOCK / 8][4] = {};
#pragma unroll
            for (int step = 0; step < DEPTH_STEPS; ++step) {
#pragma unroll
                for (int keys16 = 0; keys16 < KEY_BLOCK / 16; ++keys16) {
                    const int row = keys16 * 16 + lane / 16 * 8 + lane % 8;
                    uint32_t b[4];
                    ldmatrix_x4(b, keys + row * STRIDE + step * 16 + lane / 8 % 2 * 8);
                    mma_bf16(scores[2 * keys16], asking[step], b[0], b[1]);
                    mma_bf16(scores[2 * keys16 + 1], asking[step], b[2], b[3]);
                }
            }

            if (capped) {
                // tanh(x) = 1 - 2 / (1 + exp(2 x)), right at both infinities.
#pragma unroll
                for (int tile8 = 0; tile8 < KEY_BLOCK / 8; ++tile8) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const float grown = exp2f(scores[tile8][i] * inner);
                        scores[tile8][i] = problem.soft_cap * (1.0f - 2.0f / (1.0f + grown));
                    }
                }
            }
            const bool cut_off = problem.window > 0 && first_key <= warp_last - problem.window;
            if (last_key > warp_first || cut_off) {
#pragma unroll
                for (int tile8 = 0; tile8 < KEY_BLOCK / 8; ++tile8) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int behind = position[i / 2] - (first_key + tile8 * 8 + pair + i % 2);
                        const bool seen =
                            behind >= 0 && (problem.window == 0 || behind < problem.window);
                        if (!seen) scores[tile8][i] = -INFINITY;
                    }
                }
            }

#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float highest = maximum[half];
#pragma unroll
                for (int tile8 = 0; tile8 < KEY_BLOCK / 8; ++tile8) {
                    highest = fmaxf(highest, scores[tile8][2 * half]);
                    highest = fmaxf(highest, scores[tile8][2 * half + 1]);
                }
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
                // A row that has seen nothing yet has no maximum to take off. The difference is scaled, not
                // the maximum: an unchanged one must shrink by exactly 1.
                const float base = highest == -INFINITY ? 0.0f : highest;
                const float shrink = exp2f((maximum[half] - base) * to_log2);
                maximum[half] = highest;
                float added = 0.0f;
#pragma unroll
                for (int tile8 = 0; tile8 < KEY_BLOCK / 8; ++tile8) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[tile8][i] = exp2f((scores[tile8][i] - base) * to_log2);
                        added += scores[tile8][i];
                    }
                }
                weight[half] = fmaf(weight[half], shrink, added);
#pragma unroll
                for (int tile8 = 0; tile8 < HEAD_DIM / 8; ++tile8) {
                    sums[tile8][2 * half] *= shrink;
                    sums[tile8][2 * half + 1] *= shrink;
                }
            }

#pragma unroll
            for (int keys16 = 0; keys16 < KEY_BLOCK / 16; ++keys16) {
                // The scores of two 8-key tiles lie as the left operand of a 16-key product does.
                const float* low = scores[2 * keys16];
                const float* high = scores[2 * keys16 + 1];
                const uint32_t weights[4] = {
                    pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]),
                    pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
                const int row = keys16 * 16 + lane % 16;
#pragma unroll
                for (int columns16 = 0; columns16 < DEPTH_STEPS; ++columns16) {
                    uint32_t b[4];
                    ldmatrix_x4_transposed(b, values + row * STRIDE + columns16 * 16 + lane / 16 * 8);
                    mma_bf16(sums[2 * columns16], weights, b[0], b[1]);
                    mma_bf16(sums[2 * columns16 + 1], weights, b[2], b[3]);
                }
            }
        }
        // The next turn overwrites this stage.
        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 1);
        weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 2);
        if (!holds[half]) continue;
        const float inverse = 1.0f / weight[half];
        bf16* to = problem.out + query_row[half] * problem.out_stride + column[half] + pair;
#pragma unroll
        for (int tile8 = 0; tile8 < HEAD_DIM / 8; ++tile8) {
            *reinterpret_cast<uint32_t*>(to + tile8 * 8) =
                pack_bf16(sums[tile8][2 * half] * inverse + 0.0f, sums[tile8][2 * half + 1] * inverse + 0.0f);
        }
    }
}

}  // namespace packed_attention

using namespace packed_attention;

#define PACKED_ATTENTION(HEAD_DIM)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) packed_attention_##HEAD_DIM(                     \
        bf16* out, const bf16* q, const bf16* k, const bf16* v, const int4* tiles, const int* path_starts, \
        const int2* stretches, int out_stride, int q_stride, int key_value_stride, int group, int window,  \
        float scale, float soft_cap                                                                        \
    ) {                                                                                                    \
        DYNAMIC_SHARED(unsigned char, shared);                                                             \
        const Problem problem{out, q, k, v, tiles, path_starts, stretches, out_stride, q_stride,           \
                              key_value_stride, group, window, scale, soft_cap};                           \
        attend<HEAD_DIM>(problem, reinterpret_cast<bf16*>(shared));                                        \
    }

PACKED_ATTENTION(16)
PACKED_ATTENTION(32)
PACKED_ATTENTION(48)
PACKED_ATTENTION(64)
PACKED_ATTENTION(80)
PACKED_ATTENTION(96)
PACKED_ATTENTION(128)
