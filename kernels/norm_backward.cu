// The gradient of a root-mean-square norm, y = x * inverse * scale with inverse = 1 / sqrt(mean(x^2) + epsilon).
//
//   rms_norm_backward   d_x[r, c] = inverse * (scale[c] * d_y[r, c] - x[r, c] * inverse^2 / columns * along), and, where adds
//                       is not 0, what is there, along = sum over c of scale[c] * d_y[r, c] * x[r, c]
//                       d_scale_parts[b, c] = sum over the rows of block b of d_y[r, c] * x[r, c] * inverse
//   add_row_sums        out[c] += sum over r of parts[r, c]
//
// Shapes    all f32: x, d_y, d_x [rows, columns], scale [columns], d_scale_parts [ceil(rows / 16), columns] or null; parts
//           [rows, columns], out [columns]. Any columns; in pieces of 16 bytes where they are a multiple of 4, for which all must
//           lie on 16 bytes.
// Launch    128 threads, no dynamic shared memory; rms_norm_backward grid ceil(rows / 16), add_row_sums ceil(columns / 128).
// Memory    floor: rms_norm_backward 12 bytes an element (x and d_y in, d_x out), 16 where it adds, and 4 bytes a column for each
//           16 rows; add_row_sums 4 bytes an element of parts.
// FLOP      some 12 an element: bound by memory.
//
// Tile      16 consecutive rows a block, so that d_scale takes a 16th of a row's bytes and no atomic operation. A thread holds
//           the same columns of all rows: the sums of d_scale need no other thread. Up to 4,096 columns x and d_y wait for the
//           row's sums in registers, up to 32 elements of each: of one row of 4,096, two of 2,048, four of 1,024 or 512, to be read
//           once and to wait seldom. Longer rows, and those whose columns are no multiple of 4, are read a second time: 4 blocks an
//           SM, with 64 KiB each in rows of 8,192, find that in the second-level cache. Their sums of d_scale wait in
//           d_scale_parts.
// Source    RMS norm: Zhang and Sennrich 2019; its gradient by the chain rule.
//
// A thread adds a row's elements in ascending order, lanes are added in a tree, and warps in theirs: d_x depends on its row only.
// d_scale has the rows in ascending order.

#include "common.cuh"

namespace norm_backward {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int ROWS = 16;  // of a block
constexpr int WIDTH = 4;  // elements of a piece
constexpr int MOST = 8;   // pieces of x, and of d_y, that a thread holds

struct Problem {
    float* d_x;
    float* d_scale;  // of this block, or null
    const float* d_y;
    const float* x;
    const float* scale;
    int rows;  // of this block
    int columns;
    float epsilon;
    bool adds;
};

// Of a row: sum of x^2, and of scale d_y x.
struct Sums {
    float square, along;
};

// What d_x takes of a row's sums.
struct Factors {
    float inverse, pull;
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

__device__ __forceinline__ Factors factors(Sums sums, const Problem& problem) {
    const float inverse = 1.0f / sqrtf(sums.square / problem.columns + problem.epsilon);
    return {inverse, inverse * inverse / problem.columns * sums.along};
}

// The sums of all threads for COUNT rows. One buffer of `partial` is read while the next turn's is written: one barrier a turn.
template <int COUNT>
__device__ __forceinline__ void block_sums(Sums (&sums)[COUNT], Sums (&partial)[WARPS][MOST]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        sums[i] = {warp_sum(sums[i].square), warp_sum(sums[i].along)};
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][i] = sums[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        sums[i] = partial[0][i];
#pragma unroll
        for (int warp = 1; warp < WARPS; ++warp) sums[i].square += partial[warp][i].square, sums[i].along += partial[warp][i].along;
    }
}

template <int SIZE>
__device__ __forceinline__ void load(float (&values)[SIZE], const float* from) {
    if constexpr (SIZE == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else {
        values[0] = *from;
    }
}

template <int SIZE>
__device__ __forceinline__ void store(float* to, const float (&values)[SIZE]) {
    if constexpr (SIZE == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
        *to = values[0];
    }
}

template <int SIZE>
__device__ __forceinline__ void add_to(Sums& sums, const float (&x)[SIZE], const float (&d_y)[SIZE], const float (&scale)[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
        sums.square = fmaf(x[i], x[i], sums.square);
        sums.along = fmaf(scale[i] * d_y[i], x[i], sums.along);
    }
}

// Writes a piece of d_x, and adds to the piece's sums of d_scale. Fused operations are written out: where the compiler chooses, the
// bits of a row differ from copy to copy of this code.
template <int SIZE>
__device__ __forceinline__ void finish(
    float* to, float (&d_scale)[SIZE], const float (&x)[SIZE], const float (&d_y)[SIZE], const float (&scale)[SIZE], Factors row, bool adds
) {
    float d_x[SIZE] = {};
    if (adds) load(d_x, to);
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
        d_x[i] = fmaf(row.inverse, fmaf(-x[i], row.pull, scale[i] * d_y[i]), d_x[i]);
        d_scale[i] = fmaf(d_y[i], x[i] * row.inverse, d_scale[i]);
    }
    store(to, d_x);
}

// Rows of at most PIECES * THREADS pieces, some of them at a time, held in registers. What is `kept` are the sums
// of d_scale, each thread's own: in registers too they would leave room for two blocks an SM.
template <int PIECES>
__device__ __forceinline__ void held(const Problem& problem, Sums (&partial)[2][WARPS][MOST], float4 (&kept)[MOST][THREADS]) {
    constexpr int AT_ONCE = PIECES == 1 ? 4 : MOST / PIECES;
    const int columns = problem.columns, own = threadIdx.x * WIDTH;
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) kept[piece][threadIdx.x] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int first = 0; first < problem.rows; first += AT_ONCE) {
        const size_t start = static_cast<size_t>(first) * columns + own;
        float x[PIECES][AT_ONCE][WIDTH], d_y[PIECES][AT_ONCE][WIDTH], scale[WIDTH];
        Sums sums[AT_ONCE] = {};
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const int column = piece * THREADS * WIDTH;
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                if (column + own < columns && first + i < problem.rows) {
                    load(x[piece][i], problem.x + start + i * columns + column);
                    load(d_y[piece][i], problem.d_y + start + i * columns + column);
                }
            }
        }
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const int column = piece * THREADS * WIDTH;
            if (column + own < columns) {
                load(scale, problem.scale + column + own);
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) {
                    if (first + i < problem.rows) add_to(sums[i], x[piece][i], d_y[piece][i], scale);
                }
            }
        }
        block_sums(sums, partial[first / AT_ONCE % 2]);
        Factors row[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) row[i] = factors(sums[i], problem);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const int column = piece * THREADS * WIDTH;
            if (column + own < columns) {
                float d_scale[WIDTH];
                load(scale, problem.scale + column + own);
                load(d_scale, &kept[piece][threadIdx.x].x);
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) {
                    float* const to = problem.d_x + start + i * columns + column;
                    if (first + i < problem.rows) finish(to, d_scale, x[piece][i], d_y[piece][i], scale, row[i], problem.adds);
                }
                store(&kept[piece][threadIdx.x].x, d_scale);
            }
        }
    }
    if (problem.d_scale == nullptr) return;
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
        const int column = piece * THREADS * WIDTH + own;
        if (column < columns) *reinterpret_cast<float4*>(problem.d_scale + column) = kept[piece][threadIdx.x];
    }
}

// Any rows, SIZE elements of a thread at a time, read twice.
template <int SIZE>
__device__ __forceinline__ void streamed(const Problem& problem, Sums (&partial)[2][WARPS][MOST]) {
    for (int row = 0; row < problem.rows; ++row) {
        const size_t start = static_cast<size_t>(row) * problem.columns;
        float x[SIZE], d_y[SIZE], scale[SIZE];
        Sums sums[1] = {};
        for (int column = threadIdx.x * SIZE; column < problem.columns; column += THREADS * SIZE) {
            load(x, problem.x + start + column), load(d_y, problem.d_y + start + column), load(scale, problem.scale + column);
            add_to(sums[0], x, d_y, scale);
        }
        block_sums(sums, partial[row % 2]);
        const Factors of_row = factors(sums[0], problem);
        for (int column = threadIdx.x * SIZE; column < problem.columns; column += THREADS * SIZE) {
            float d_scale[SIZE] = {};
            if (row > 0 && problem.d_scale != nullptr) load(d_scale, problem.d_scale + column);
            load(x, problem.x + start + column), load(d_y, problem.d_y + start + column), load(scale, problem.scale + column);
            finish(problem.d_x + start + column, d_scale, x, d_y, scale, of_row, problem.adds);
            if (problem.d_scale != nullptr) store(problem.d_scale + column, d_scale);
        }
    }
}

// The sum over rows of up to 128 columns from `first`: a warp has every fourth row, and a lane four columns that lie
// together (SIZE 4) or 32 apart (SIZE 1).
template <int SIZE>
__device__ __forceinline__ void column_sums(float (&sums)[WARPS][THREADS], const float* parts, int first, int rows, int columns) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum[4 / SIZE][SIZE] = {};
#pragma unroll 4
    for (int row = warp; row < rows; row += WARPS) {
#pragma unroll
        for (int piece = 0; piece < 4 / SIZE; ++piece) {
            const int column = (piece * 32 + lane) * SIZE;
            float added[SIZE] = {};
            if (first + column < columns) load(added, parts + static_cast<size_t>(row) * columns + first + column);
#pragma unroll
            for (int i = 0; i < SIZE; ++i) sum[piece][i] += added[i];
        }
    }
#pragma unroll
    for (int piece = 0; piece < 4 / SIZE; ++piece) store(&sums[warp][(piece * 32 + lane) * SIZE], sum[piece]);
}

}  // namespace norm_backward

using namespace norm_backward;

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_backward(
    float* d_x, float* d_scale_parts, const float* d_y, const float* x, const float* scale, int rows, int columns, float epsilon, int adds
) {
    __shared__ Sums partial[2][WARPS][MOST];
    __shared__ float4 kept[MOST][THREADS];
    const size_t block = blockIdx.x, start = block * ROWS * columns;
    const Problem problem{
        d_x + start, d_scale_parts == nullptr ? nullptr : d_scale_parts + block * columns, d_y + start, x + start, scale,
        min(ROWS, rows - static_cast<int>(block) * ROWS), columns, epsilon, adds != 0
    };
    constexpr int PIECE = THREADS * WIDTH;
    if (columns % WIDTH != 0) {
        streamed<1>(problem, partial);
    } else if (columns <= PIECE) {
        held<1>(problem, partial, kept);
    } else if (columns <= 2 * PIECE) {
        held<2>(problem, partial, kept);
    } else if (columns <= 4 * PIECE) {
        held<4>(problem, partial, kept);
    } else if (columns <= 8 * PIECE) {
        held<8>(problem, partial, kept);
    } else {
        streamed<4>(problem, partial);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) add_row_sums(float* out, const float* parts, int rows, int columns) {
    __shared__ __align__(16) float sums[WARPS][THREADS];
    const int first = blockIdx.x * THREADS, column = first + threadIdx.x;
    if (columns % 4 == 0) {
        column_sums<4>(sums, parts, first, rows, columns);
    } else {
        column_sums<1>(sums, parts, first, rows, columns);
    }
    __syncthreads();
    if (column < columns) out[column] += sums[0][threadIdx.x] + sums[1][threadIdx.x] + sums[2][threadIdx.x] + sums[3][threadIdx.x];
}
