// Squared Euclidean distances of all pairs of two sets of latents, and what DBSCAN and the CSI ask of them.
//
// distance(i, j) = sum_c (x[i, c] - y[j, c])^2
//
// Shapes    x [n, depth], y [m, depth], f32, rows one after the other; any depth (latents have 16 to 512).
//   latent_distances    out [n, m] f32.
//   latent_neighbours   near, open [n, words] u32, words = 2 * ceil(m / 64): bit j % 32 of word j / 32 says
//                       that distance(i, j) <= inner, or that it is above inner but not above outer. Read
//                       as little-endian u64 that is the layout of the monitor's neighbour graph. A NaN is
//                       open. counts, open_counts [n] i32, zeros before: how many bits were set.
//   latent_nearest      nearest [n] u64, all ones before: the bits of the least finite distance of the row, and
//                       below them the least column that has it. All ones stay where there is none.
// Launch    grid (ceil(m / 128), ceil(n / 128)), 256 threads, no dynamic shared memory.
// FLOP      3 n m depth, as 2 instructions each (subtract, fused multiply-add).
// Memory    floor: x and y once and the result once: 4 depth (n + m) + 4 n m bytes for the distances, n m / 4 for the
//           bits. Each tile of 128 x 128 reads 1 KiB a channel for 48 KFLOP: bound by arithmetic.
//
// Tile      128 x 128 pairs, 8 x 8 a thread: two float4 of x and two of y from shared memory for 128
//           instructions. 8 channels a step, the next step's in registers meanwhile; two stages, so one
//           barrier a step.
// Source    the squares are summed plainly, not by |x|^2 + |y|^2 - 2 x.y, which tensor cores could do: that
//           cancels for close points, and neighbours are close points. Each rounding here is relative to
//           the distance itself: |computed - exact| <= (depth + 2) 2^-24 exact, to first order. With
//           inner and outer = eps^2 (1 -+ (depth + 3) 2^-24) the near pairs are certain, and the few
//           open ones are for the host to sum in f64. DBSCAN: Ester et al. 1996.
//
// A pair's channels are added in ascending order by one thread, and counts and minima are of integers: the
// result has the same bits whatever else is in the sets, and distance(i, j) those of distance(j, i).

#include "common.cuh"

namespace latent_distance {

constexpr int TILE = 128;
constexpr int DEPTH_STEP = 8;
constexpr int THREADS = 256;
constexpr int PER_THREAD = 8;
// A multiple of 4 for float4; a warp stores 8 channels of 4 rows, on 32 banks.
constexpr int STRIDE = TILE + 4;
constexpr int LOADS = TILE * DEPTH_STEP / THREADS;

struct Shared {
    float x[2][DEPTH_STEP][STRIDE];
    float y[2][DEPTH_STEP][STRIDE];
};

// The row of a thread's i-th value along one side of the tile: two runs of four, so that the float4 of
// neighbouring threads lie side by side.
__device__ __forceinline__ int place(int thread, int i) {
    return i / 4 * (TILE / 2) + thread * 4 + i % 4;
}

// Rows `first + ..` of channels `depth_first + ..`, zeros beyond the ends.
__device__ __forceinline__ void fetch(
    float (&into)[LOADS], const float* from, int rows, int first, int depth, int depth_first
) {
    const int channel = depth_first + threadIdx.x % DEPTH_STEP;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const int row = first + threadIdx.x / DEPTH_STEP + i * (THREADS / DEPTH_STEP);
        const bool exists = row < rows && channel < depth;
        into[i] = exists ? from[static_cast<size_t>(row) * depth + channel] : 0.0f;
    }
}

__device__ __forceinline__ void keep(float (&into)[DEPTH_STEP][STRIDE], const float (&values)[LOADS]) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        into[threadIdx.x % DEPTH_STEP][threadIdx.x / DEPTH_STEP + i * (THREADS / DEPTH_STEP)] = values[i];
    }
}

// Squared distances of this thread's 8 x 8 pairs: rows place(threadIdx.x / 16, .), columns
// place(threadIdx.x % 16, .) of the block's tile.
__device__ __forceinline__ void distances(
    float (&sums)[PER_THREAD][PER_THREAD], Shared& shared, const float* x, const float* y, int n, int m, int depth
) {
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int vertical = threadIdx.x / 16, horizontal = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) sums[i][j] = 0.0f;
    }
    float next_x[LOADS], next_y[LOADS];
    fetch(next_x, x, n, top, depth, 0);
    fetch(next_y, y, m, left, depth, 0);
    int stage = 0;
    for (int first = 0; first < depth; first += DEPTH_STEP, stage ^= 1) {
        // Nobody reads this stage any more: its readers passed the last step's barrier.
        keep(shared.x[stage], next_x);
        keep(shared.y[stage], next_y);
        __syncthreads();
        if (first + DEPTH_STEP < depth) {
            fetch(next_x, x, n, top, depth, first + DEPTH_STEP);
            fetch(next_y, y, m, left, depth, first + DEPTH_STEP);
        }
#pragma unroll
        for (int channel = 0; channel < DEPTH_STEP; ++channel) {
            float of_x[PER_THREAD], of_y[PER_THREAD];
#pragma unroll
            for (int run = 0; run < 2; ++run) {
                const float4 a = *reinterpret_cast<const float4*>(&shared.x[stage][channel][place(vertical, run * 4)]);
                const float4 b = *reinterpret_cast<const float4*>(&shared.y[stage][channel][place(horizontal, run * 4)]);
                of_x[run * 4] = a.x, of_x[run * 4 + 1] = a.y, of_x[run * 4 + 2] = a.z, of_x[run * 4 + 3] = a.w;
                of_y[run * 4] = b.x, of_y[run * 4 + 1] = b.y, of_y[run * 4 + 2] = b.z, of_y[run * 4 + 3] = b.w;
            }
#pragma unroll
            for (int i = 0; i < PER_THREAD; ++i) {
#pragma unroll
                for (int j = 0; j < PER_THREAD; ++j) {
                    const float difference = of_x[i] - of_y[j];
                    sums[i][j] = fmaf(difference, difference, sums[i][j]);
                }
            }
        }
    }
}

}  // namespace latent_distance

using namespace latent_distance;

extern "C" __global__ void __launch_bounds__(THREADS, 2) latent_distances(
    float* out, const float* x, const float* y, int n, int m, int depth
) {
    __shared__ __align__(16) Shared shared;
    float sums[PER_THREAD][PER_THREAD];
    distances(sums, shared, x, y, n, m, depth);
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        const int row = blockIdx.y * TILE + place(threadIdx.x / 16, i);
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) {
            const int column = blockIdx.x * TILE + place(threadIdx.x % 16, j);
            if (row < n && column < m) out[static_cast<size_t>(row) * m + column] = sums[i][j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) latent_neighbours(
    uint32_t* near, uint32_t* open, int* counts, int* open_counts,
    const float* x, const float* y, int n, int m, int depth, float inner, float outer
) {
    __shared__ __align__(16) Shared shared;
    float sums[PER_THREAD][PER_THREAD];
    distances(sums, shared, x, y, n, m, depth);
    const int words = (m + 63) / 64 * 2;
    const int horizontal = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        const int row = blockIdx.y * TILE + place(threadIdx.x / 16, i);
        int near_count = 0, open_count = 0;
#pragma unroll
        for (int run = 0; run < 2; ++run) {
            uint32_t near_bits = 0, open_bits = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float distance = sums[i][run * 4 + j];
                const bool exists = blockIdx.x * TILE + place(horizontal, run * 4 + j) < m;
                const uint32_t bit = 1u << (horizontal % 8 * 4 + j);
                if (exists && distance <= inner) near_bits |= bit;
                if (exists && !(distance <= inner) && !(distance > outer)) open_bits |= bit;
            }
            // Eight threads hold a word's 32 columns.
#pragma unroll
            for (int distance = 1; distance < 8; distance *= 2) {
                near_bits |= __shfl_xor_sync(0xffffffffu, near_bits, distance);
                open_bits |= __shfl_xor_sync(0xffffffffu, open_bits, distance);
            }
            const int word = blockIdx.x * (TILE / 32) + run * (TILE / 64) + horizontal / 8;
            if (horizontal % 8 == 0 && row < n && word < words) {
                near[static_cast<size_t>(row) * words + word] = near_bits;
                open[static_cast<size_t>(row) * words + word] = open_bits;
                near_count += __popc(near_bits);
                open_count += __popc(open_bits);
            }
        }
        if (near_count > 0) atomicAdd(&counts[row], near_count);
        if (open_count > 0) atomicAdd(&open_counts[row], open_count);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) latent_nearest(
    unsigned long long* nearest, const float* x, const float* y, int n, int m, int depth
) {
    __shared__ __align__(16) Shared shared;
    float sums[PER_THREAD][PER_THREAD];
    distances(sums, shared, x, y, n, m, depth);
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        const int row = blockIdx.y * TILE + place(threadIdx.x / 16, i);
        // No sum of squares is below zero, so the bits are in the order of the values.
        unsigned long long least = ~0ull;
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) {
            const int column = blockIdx.x * TILE + place(threadIdx.x % 16, j);
            const unsigned long long key =
                static_cast<unsigned long long>(__float_as_uint(sums[i][j])) << 32 | static_cast<unsigned>(column);
            if (column < m && sums[i][j] < INFINITY && key < least) least = key;
        }
#pragma unroll
        for (int distance = 1; distance < 16; distance *= 2) {
            const unsigned long long other = __shfl_xor_sync(0xffffffffu, least, distance);
            least = other < least ? other : least;
        }
        if (threadIdx.x % 16 == 0 && row < n && least != ~0ull) atomicMin(&nearest[row], least);
    }
}
