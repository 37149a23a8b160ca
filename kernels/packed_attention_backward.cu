// The backward pass of packed_attention.cu: causal grouped-query attention over packed sequences with shared prefixes.
//
// With s_j = scale * q . k_j, c_j = cap(s_j), p_j = exp(c_j - log_sum) over the positions j that a (query, head) sees, and
// d_out the gradient of its output out = sum_j p_j v_j:
//
// along = d_out . out     ds_j = p_j (d_out . v_j - along) (1 - (c_j / soft_cap)^2), without the last factor where there is no cap
// d_q = scale * sum_j ds_j k_j     d_k_j = scale * sum ds_j q     d_v_j = sum p_j d_out
//
// the last two over all (query, head of the group) that see position j, of all sequences that share it. `out` is an input:
// along is of the output as it was rounded.
//
// Shapes    As in packed_attention.cu; heads = key_value_heads * group.
//           d_out, out [query rows, heads * head_dim], bf16, both out_stride apart, and q q_stride apart: 16 bytes a piece.
//           k, v [key rows, key_value_heads * head_dim], bf16, key_value_stride apart.
//           d_q [query rows, heads * head_dim], d_k, d_v [key rows, key_value_heads * head_dim], f32, d_q_stride and
//           d_key_value_stride apart (on 16 bytes): written, not added to.
//           log_sum, along [query rows, heads] f32: the first kernel writes them, the second reads them.
//           tiles, path_starts, stretches   as in packed_attention.cu. Query rows need not be key rows: where only the last
//                                token of a sequence asks, a tile is one query, at a row of its own numbering.
//           key_tiles [key tiles]      {first packed row, keys (1 to 64), position of the first, 0}: of one segment.
//           reader_starts [key tiles + 1]   where the readers of each begin in `readers`.
//           readers              indices into `tiles`, ascending: of those whose path goes through that segment and whose
//                                last position is at or after the key tile's first.
// Launch    queries: grid (tiles, key_value_heads); then keys: grid (key tiles, key_value_heads). 128 threads, both with
//           SHARED_BYTES<head_dim> = 512 * (head_dim + 8) bytes of dynamic shared memory.
// Memory    floor: q, d_out, out, k, v once and d_q, d_k, d_v once: rows * head_dim * (10 * heads + 12 * key_value_heads)
//           bytes. Keys and values are read again by each tile, queries and d_out by each key tile, from the second-level
//           cache in the main: 4 * head_dim * 64 bytes for 64 x 64 scores, as in the forward.
// FLOP      14 * head_dim * heads * sum over queries of the positions seen: 3 products for d_q and 4 for d_k and d_v, of which
//           2 are the same in both kernels (q k and d_out v). One kernel would save these, but add to d_q in f32 by
//           atomic additions, in no fixed order.
//
// Queries   The forward's tile and walk: 64 (query, head) rows x 64 keys, two stages. d_q is linear in p, so that its sums are
//           rescaled as the maximum grows, and the log-sum needs no walk of its own: 3 products, not 4. A row's q,
//           d_out and d_q stay in registers (128 at head_dim 128), and the scores of 32 keys (32): with those of 64
//           registers spill.
// Keys      64 keys x 64 rows of queries, a warp 16 keys: scores are made transposed, so that they lie as the left operand
//           of the products with d_out and q does. d_k and d_v stay in registers (128 at head_dim 128), with the scores
//           of 32 rows (32), which share a fragment of keys; keys, values, queries and d_out in shared memory, padded
//           as the forward's. One stage of queries: 68 KiB at head_dim 128, two blocks an SM on sm_80, so that
//           one computes while the other loads.
// Source    FlashAttention-2 (Dao 2023), algorithm 2, with d_q by tiles of queries in place of atomic additions;
//           fragments: PTX ISA, mma.m16n8k16.
//
// Bits of d_q, log_sum and along depend on the row's own query and its positions' keys and values only, as the forward's do.
// d_k and d_v are sums over readers in their order: the same input gives the same bits.

#include "common.cuh"

namespace packed_attention_backward {

constexpr int KEY_BLOCK = 64;
constexpr int ROWS = 64;      // (query, head of the group) pairs of a tile
constexpr int PIECE = 32;     // keys, or rows of queries, whose scores are in registers at once
constexpr int THREADS = 128;  // 4 warps of 16 rows, or 16 keys
constexpr int STAGES = 2;
constexpr int RESIDENT = 2;  // blocks an SM that registers must leave room for: not more, or ptxas spills some
constexpr float LOG2_E = 1.44269504088896340736f;

template <int HEAD_DIM>
constexpr int ROW_STRIDE = HEAD_DIM + 8;

// Four tiles of 64 rows: two stages of keys and values, or keys, values, queries and d_out.
template <int HEAD_DIM>
constexpr int SHARED_BYTES = 4 * 64 * ROW_STRIDE<HEAD_DIM> * 2;

// Threads that fetch one row of a head in 16-byte pieces: as many as divide it evenly.
template <int HEAD_DIM>
constexpr int LANES_A_ROW = HEAD_DIM / 8 % 8 == 0 ? 8 : HEAD_DIM / 8 % 4 == 0 ? 4 : 2;

// What both kernels are given.
struct Problem {
    const bf16* d_out;
    const bf16* q;
    const bf16* k;
    const bf16* v;
    const int4* tiles;
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

// From a product q . k to exponents of 2 and back.
struct Scores {
    bool capped;
    int window;
    float soft_cap, inner, to_log2, inverse_cap;

    __device__ explicit Scores(const Problem& problem)
        : capped(problem.soft_cap > 0.0f),
          window(problem.window),
          soft_cap(problem.soft_cap),
          inner(capped ? 2.0f * LOG2_E * problem.scale / problem.soft_cap : 0.0f),
          to_log2(capped ? LOG2_E : problem.scale * LOG2_E),
          inverse_cap(capped ? 1.0f / problem.soft_cap : 0.0f) {}

    // The capped score, or the product where there is no cap; minus infinity where the key is not seen.
    // tanh(x) = 1 - 2 / (1 + exp(2 x)), right at both infinities.
    __device__ float of(float product, int behind) const {
        const float score = capped ? soft_cap * (1.0f - 2.0f / (1.0f + exp2f(product * inner))) : product;
        return behind >= 0 && (window == 0 || behind < window) ? score : -INFINITY;
    }

    // Times the slope of the cap. A key that is not seen has no score and a gradient of 0, which must stay 0.
    __device__ float through_cap(float gradient, float score) const {
        const float ratio = fmaxf(score * inverse_cap, -1.0f);
        return capped ? gradient * (1.0f - ratio * ratio) : gradient;
    }
};

__device__ __forceinline__ float low_of(uint32_t two) { return __uint_as_float(two << 16); }
__device__ __forceinline__ float high_of(uint32_t two) { return __uint_as_float(two & 0xffff0000u); }

// a [16, 16] of 16 rows in shared memory, at a column.
template <int STRIDE>
__device__ __forceinline__ void load_left(uint32_t (&a)[4], const bf16* rows, int column, int lane) {
    ldmatrix_x4(a, rows + lane % 16 * STRIDE + column + lane / 16 * 8);
}

// The right operands of two products: 16 rows in shared memory are the columns of b, channels are summed.
template <int STRIDE>
__device__ __forceinline__ void load_right(uint32_t (&b)[4], const bf16* rows, int column, int lane) {
    ldmatrix_x4(b, rows + (lane / 16 * 8 + lane % 8) * STRIDE + column + lane / 8 % 2 * 8);
}

// The same where the 16 rows are summed, and 16 channels are the columns of b.
template <int STRIDE>
__device__ __forceinline__ void load_summed(uint32_t (&b)[4], const bf16* rows, int column, int lane) {
    ldmatrix_x4_transposed(b, rows + lane % 16 * STRIDE + column + lane / 16 * 8);
}

// Two tiles of 8 columns as the left operand of a product over these 16 columns.
__device__ __forceinline__ void pack_left(uint32_t (&a)[4], const float (&low)[4], const float (&high)[4]) {
    a[0] = pack_bf16(low[0], low[1]), a[1] = pack_bf16(low[2], low[3]);
    a[2] = pack_bf16(high[0], high[1]), a[3] = pack_bf16(high[2], high[3]);
}

template <int HEAD_DIM>
__device__ __forceinline__ void of_queries(
    const Problem& problem, float* d_q, float* log_sum, float* along, const bf16* out, const int* path_starts,
    const int2* stretches, int d_q_stride, bf16* shared
) {
    constexpr int STRIDE = ROW_STRIDE<HEAD_DIM>;
    constexpr int DEPTH_STEPS = HEAD_DIM / 16;
    constexpr int LANES = LANES_A_ROW<HEAD_DIM>;
    constexpr int KEYS_A_PASS = THREADS / LANES;
    constexpr int BLOCK_ELEMENTS = KEY_BLOCK * STRIDE;

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

    PathCursor path{stretches + path_starts[tile.w], stretches + path_starts[tile.w + 1]};
    const bf16* k = problem.k + blockIdx.y * HEAD_DIM;
    const bf16* v = problem.v + blockIdx.y * HEAD_DIM;

    // Starts the copies of a block; blocks come in ascending order.
    auto fetch = [&](int block, int stage) {
        bf16* keys = shared + stage * 2 * BLOCK_ELEMENTS;
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
    fetch(begin, 0);
    cp_async_commit();

    // This thread's two rows of the tile, and their positions. Rows that hold no query repeat the last one's.
    bool holds[2];
    int position[2];
    size_t query_row[2];
    int head[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + half * 8 + quad;
        const int query = min(row / group, queries - 1);
        holds[half] = row / group < queries;
        position[half] = first_position + query;
        query_row[half] = first_row + query;
        head[half] = blockIdx.y * group + row % group;
    }
    const int warp_last = first_position + min((warp * 16 + 15) / group, queries - 1);

    uint32_t asking[DEPTH_STEPS][4], told[DEPTH_STEPS][4];  // q and d_out
    float dot[2] = {0.0f, 0.0f};                            // d_out . out
#pragma unroll
    for (int step = 0; step < DEPTH_STEPS; ++step) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            const int half = part % 2;
            const int column = head[half] * HEAD_DIM + step * 16 + part / 2 * 8 + pair;
            const size_t of_out = query_row[half] * problem.out_stride + column;
            const uint32_t output = *reinterpret_cast<const uint32_t*>(out + of_out);
            asking[step][part] = *reinterpret_cast<const uint32_t*>(problem.q + query_row[half] * problem.q_stride + column);
            told[step][part] = *reinterpret_cast<const uint32_t*>(problem.d_out + of_out);
            dot[half] = fmaf(low_of(told[step][part]), low_of(output), dot[half]);
            dot[half] = fmaf(high_of(told[step][part]), high_of(output), dot[half]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        dot[half] += __shfl_xor_sync(0xffffffffu, dot[half], 1);
        dot[half] += __shfl_xor_sync(0xffffffffu, dot[half], 2);
    }

    float sums[HEAD_DIM / 8][4] = {};
    float maximum[2] = {-INFINITY, -INFINITY};
    float weight[2] = {0.0f, 0.0f};  // of this thread's columns
    const Scores scoring(problem);

    for (int block = begin; block < end; ++block) {
        const int stage = (block - begin) % STAGES;
        if (block + 1 < end) fetch(block + 1, (stage + 1) % STAGES);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        for (int piece = 0; piece < KEY_BLOCK; piece += PIECE) {
            const int first_key = block * KEY_BLOCK + piece;
            if (first_key > warp_last) break;
            const bf16* keys = shared + stage * 2 * BLOCK_ELEMENTS + piece * STRIDE;
            const bf16* values = keys + BLOCK_ELEMENTS;

            float scores[PIECE / 8][4] = {};
            float gradients[PIECE / 8][4] = {};  // d_out . v, then of the scores
#pragma unroll
            for (int step = 0; step < DEPTH_STEPS; ++step) {
#pragma unroll
                for (int keys16 = 0; keys16 < PIECE / 16; ++keys16) {
                    uint32_t b[4];
                    load_right<STRIDE>(b, keys + keys16 * 16 * STRIDE, step * 16, lane);
                    mma_bf16(scores[2 * keys16], asking[step], b[0], b[1]);
                    mma_bf16(scores[2 * keys16 + 1], asking[step], b[2], b[3]);
                    load_right<STRIDE>(b, values + keys16 * 16 * STRIDE, step * 16, lane);
                    mma_bf16(gradients[2 * keys16], told[step], b[0], b[1]);
                    mma_bf16(gradients[2 * keys16 + 1], told[step], b[2], b[3]);
                }
            }
#pragma unroll
            for (int tile8 = 0; tile8 < PIECE / 8; ++tile8) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int behind = position[i / 2] - (first_key + tile8 * 8 + pair + i % 2);
                    scores[tile8][i] = scoring.of(scores[tile8][i], behind);
                }
            }

#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float highest = maximum[half];
#pragma unroll
                for (int tile8 = 0; tile8 < PIECE / 8; ++tile8) {
                    highest = fmaxf(highest, scores[tile8][2 * half]);
                    highest = fmaxf(highest, scores[tile8][2 * half + 1]);
                }
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
                // A row that has seen nothing yet has no maximum to take off. The difference is scaled, not
                // the maximum: an unchanged one must shrink by exactly 1.
                const float base = highest == -INFINITY ? 0.0f : highest;
                const float shrink = exp2f((maximum[half] - base) * scoring.to_log2);
                maximum[half] = highest;
                float added = 0.0f;
#pragma unroll
                for (int tile8 = 0; tile8 < PIECE / 8; ++tile8) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        const float grown = exp2f((scores[tile8][i] - base) * scoring.to_log2);
                        added += grown;
                        gradients[tile8][i] = scoring.through_cap(grown * (gradients[tile8][i] - dot[half]), scores[tile8][i]);
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
            for (int keys16 = 0; keys16 < PIECE / 16; ++keys16) {
                uint32_t a[4];
                pack_left(a, gradients[2 * keys16], gradients[2 * keys16 + 1]);
#pragma unroll
                for (int columns16 = 0; columns16 < DEPTH_STEPS; ++columns16) {
                    uint32_t b[4];
                    load_summed<STRIDE>(b, keys + keys16 * 16 * STRIDE, columns16 * 16, lane);
                    mma_bf16(sums[2 * columns16], a, b[0], b[1]);
                    mma_bf16(sums[2 * columns16 + 1], a, b[2], b[3]);
                }
            }
        }
        // The next turn overwrites this stage.
        __syncthreads();
    }

    const int heads = gridDim.y * group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 1);
        weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 2);
        if (!holds[half]) continue;
        if (pair == 0) {
            const float highest = scoring.capped ? maximum[half] : maximum[half] * problem.scale;
            log_sum[query_row[half] * heads + head[half]] = highest + logf(weight[half]);
            along[query_row[half] * heads + head[half]] = dot[half];
        }
        const float factor = problem.scale / weight[half];
        float* to = d_q + query_row[half] * d_q_stride + head[half] * HEAD_DIM + pair;
#pragma unroll
        for (int tile8 = 0; tile8 < HEAD_DIM / 8; ++tile8) {
            // -0 becomes +0: a block of which a row sees nothing makes one of the other.
            *reinterpret_cast<float2*>(to + tile8 * 8) =
                make_float2(sums[tile8][2 * half] * factor + 0.0f, sums[tile8][2 * half + 1] * factor + 0.0f);
        }
    }
}

// What a block of keys knows of a row of queries.
struct Asking {
    float log_sum;  // to the base of 2
    float along;
    int position;  // -1 where the row holds no query: it sees no key, and its q and d_out are zeros
};

template <int HEAD_DIM>
__device__ __forceinline__ void of_keys(
    const Problem& problem, float* d_k, float* d_v, const float* log_sum, const float* along, const int4* key_tiles,
    const int* reader_starts, const int* readers, int d_key_value_stride, bf16* shared, Asking* asking
) {
    constexpr int STRIDE = ROW_STRIDE<HEAD_DIM>;
    constexpr int DEPTH_STEPS = HEAD_DIM / 16;
    constexpr int LANES = LANES_A_ROW<HEAD_DIM>;
    constexpr int ROWS_A_PASS = THREADS / LANES;

    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const int quad = lane / 4;
    const int pair = lane % 4 * 2;
    const int group = problem.group;
    const int heads = gridDim.y * group;

    const int4 key_tile = key_tiles[blockIdx.x];
    const int first_row = key_tile.x, count = key_tile.y, first_position = key_tile.z;
    bf16* const keys = shared;
    bf16* const values = keys + KEY_BLOCK * STRIDE;
    bf16* const queries = values + KEY_BLOCK * STRIDE;
    bf16* const told = queries + ROWS * STRIDE;

    // Starts the copies of 64 rows of two matrices; `find` tells whether there is a row, and its first element in each.
    auto fetch = [&](bf16* to_a, bf16* to_b, const bf16* a, const bf16* b, auto find) {
#pragma unroll
        for (int pass = 0; pass < 64 / ROWS_A_PASS; ++pass) {
            const int row = pass * ROWS_A_PASS + threadIdx.x / LANES;
            size_t in_a = 0, in_b = 0;
            const bool exists = find(row, in_a, in_b);
#pragma unroll
            for (int part = 0; part < HEAD_DIM / 8 / LANES; ++part) {
                const int column = (part * LANES + threadIdx.x % LANES) * 8;
                cp_async_16(to_a + row * STRIDE + column, a + in_a + column, exists);
                cp_async_16(to_b + row * STRIDE + column, b + in_b + column, exists);
            }
        }
    };
    fetch(keys, values, problem.k, problem.v, [&](int row, size_t& in_k, size_t& in_v) {
        if (row >= count) return false;
        in_k = in_v = static_cast<size_t>(first_row + row) * problem.key_value_stride + blockIdx.y * HEAD_DIM;
        return true;
    });
    cp_async_commit();

    const int warp_key = first_position + warp * 16;  // the position of the warp's first key
    float d_keys[HEAD_DIM / 8][4] = {}, d_values[HEAD_DIM / 8][4] = {};
    const Scores scoring(problem);

    for (int reader = reader_starts[blockIdx.x]; reader < reader_starts[blockIdx.x + 1]; ++reader) {
        const int4 tile = problem.tiles[readers[reader]];
        // The window of its first query, which reaches back the most, may have left all these keys behind.
        if (problem.window > 0 && tile.z - (first_position + count - 1) >= problem.window) continue;
        const int rows = tile.y * group;
        // The last turn's readers of shared memory must be done.
        __syncthreads();
        fetch(queries, told, problem.q, problem.d_out, [&](int row, size_t& in_q, size_t& in_out) {
            if (row >= rows) return false;
            const size_t query = tile.x + row / group;
            const int column = (blockIdx.y * group + row % group) * HEAD_DIM;
            in_q = query * problem.q_stride + column;
            in_out = query * problem.out_stride + column;
            return true;
        });
        cp_async_commit();
        if (threadIdx.x < ROWS) {
            const int row = threadIdx.x;
            Asking of_row{0.0f, 0.0f, -1};
            if (row < rows) {
                const size_t index = static_cast<size_t>(tile.x + row / group) * heads + blockIdx.y * group + row % group;
                of_row = {log_sum[index] * LOG2_E, along[index], tile.z + row / group};
            }
            asking[row] = of_row;
        }
        cp_async_wait<0>();
        __syncthreads();
        // No query comes after the warp's keys.
        if (tile.z + tile.y - 1 < warp_key) continue;

        for (int piece = 0; piece < rows; piece += PIECE) {
            // [keys, rows of queries]
            float weights[PIECE / 8][4] = {}, gradients[PIECE / 8][4] = {};
#pragma unroll
            for (int step = 0; step < DEPTH_STEPS; ++step) {
                uint32_t key[4], value[4];
                load_left<STRIDE>(key, keys + warp * 16 * STRIDE, step * 16, lane);
                load_left<STRIDE>(value, values + warp * 16 * STRIDE, step * 16, lane);
#pragma unroll
                for (int rows16 = 0; rows16 < PIECE / 16; ++rows16) {
                    uint32_t b[4];
                    load_right<STRIDE>(b, queries + (piece + rows16 * 16) * STRIDE, step * 16, lane);
                    mma_bf16(weights[2 * rows16], key, b[0], b[1]);
                    mma_bf16(weights[2 * rows16 + 1], key, b[2], b[3]);
                    load_right<STRIDE>(b, told + (piece + rows16 * 16) * STRIDE, step * 16, lane);
                    mma_bf16(gradients[2 * rows16], value, b[0], b[1]);
                    mma_bf16(gradients[2 * rows16 + 1], value, b[2], b[3]);
                }
            }
#pragma unroll
            for (int tile8 = 0; tile8 < PIECE / 8; ++tile8) {
#pragma unroll
                for (int column = 0; column < 2; ++column) {
                    const Asking row = asking[piece + tile8 * 8 + pair + column];
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int i = 2 * half + column;
                        const float score = scoring.of(weights[tile8][i], row.position - (warp_key + half * 8 + quad));
                        const float weight = exp2f(score * scoring.to_log2 - row.log_sum);
                        weights[tile8][i] = weight;
                        gradients[tile8][i] = scoring.through_cap(weight * (gradients[tile8][i] - row.along), score);
                    }
                }
            }
#pragma unroll
            for (int rows16 = 0; rows16 < PIECE / 16; ++rows16) {
                uint32_t of_weights[4], of_gradients[4];
                pack_left(of_weights, weights[2 * rows16], weights[2 * rows16 + 1]);
                pack_left(of_gradients, gradients[2 * rows16], gradients[2 * rows16 + 1]);
#pragma unroll
                for (int columns16 = 0; columns16 < DEPTH_STEPS; ++columns16) {
                    uint32_t b[4];
                    load_summed<STRIDE>(b, told + (piece + rows16 * 16) * STRIDE, columns16 * 16, lane);
                    mma_bf16(d_values[2 * columns16], of_weights, b[0], b[1]);
                    mma_bf16(d_values[2 * columns16 + 1], of_weights, b[2], b[3]);
                    load_summed<STRIDE>(b, queries + (piece + rows16 * 16) * STRIDE, columns16 * 16, lane);
                    mma_bf16(d_keys[2 * columns16], of_gradients, b[0], b[1]);
                    mma_bf16(d_keys[2 * columns16 + 1], of_gradients, b[2], b[3]);
                }
            }
        }
    }
    // Of keys that nobody reads the copies are still under way.
    cp_async_wait<0>();

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int key = warp * 16 + half * 8 + quad;
        if (key >= count) continue;
        const size_t to = static_cast<size_t>(first_row + key) * d_key_value_stride + blockIdx.y * HEAD_DIM + pair;
#pragma unroll
        for (int tile8 = 0; tile8 < HEAD_DIM / 8; ++tile8) {
            *reinterpret_cast<float2*>(d_k + to + tile8 * 8) =
                make_float2(d_keys[tile8][2 * half] * problem.scale, d_keys[tile8][2 * half + 1] * problem.scale);
            *reinterpret_cast<float2*>(d_v + to + tile8 * 8) =
                make_float2(d_values[tile8][2 * half], d_values[tile8][2 * half + 1]);
        }
    }
}

}  // namespace packed_attention_backward

using namespace packed_attention_backward;

#define PACKED_ATTENTION_BACKWARD(HEAD_DIM)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) packed_attention_backward_queries_##HEAD_DIM(                \
        float* d_q, float* log_sum, float* along, const bf16* d_out, const bf16* out, const bf16* q, const bf16* k,    \
        const bf16* v, const int4* tiles, const int* path_starts, const int2* stretches, int d_q_stride,               \
        int out_stride, int q_stride, int key_value_stride, int group, int window, float scale, float soft_cap         \
    ) {                                                                                                                \
        DYNAMIC_SHARED(unsigned char, shared);                                                                         \
        const Problem problem{d_out, q, k, v, tiles, out_stride, q_stride, key_value_stride, group, window, scale,     \
                              soft_cap};                                                                               \
        of_queries<HEAD_DIM>(problem, d_q, log_sum, along, out, path_starts, stretches, d_q_stride,                    \
                             reinterpret_cast<bf16*>(shared));                                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) packed_attention_backward_keys_##HEAD_DIM(                   \
        float* d_k, float* d_v, const float* log_sum, const float* along, const bf16* d_out, const bf16* q,            \
        const bf16* k, const bf16* v, const int4* key_tiles, const int* reader_starts, const int* readers,             \
        const int4* tiles, int d_key_value_stride, int out_stride, int q_stride, int key_value_stride, int group,      \
        int window, float scale, float soft_cap                                                                        \
    ) {                                                                                                                \
        DYNAMIC_SHARED(unsigned char, shared);                                                                         \
        __shared__ Asking asking[ROWS];                                                                                \
        const Problem problem{d_out, q, k, v, tiles, out_stride, q_stride, key_value_stride, group, window, scale,     \
                              soft_cap};                                                                               \
        of_keys<HEAD_DIM>(problem, d_k, d_v, log_sum, along, key_tiles, reader_starts, readers, d_key_value_stride,    \
                          reinterpret_cast<bf16*>(shared), asking);                                                    \
    }

PACKED_ATTENTION_BACKWARD(16)
PACKED_ATTENTION_BACKWARD(32)
PACKED_ATTENTION_BACKWARD(48)
PACKED_ATTENTION_BACKWARD(64)
PACKED_ATTENTION_BACKWARD(80)
PACKED_ATTENTION_BACKWARD(96)
PACKED_ATTENTION_BACKWARD(128)
