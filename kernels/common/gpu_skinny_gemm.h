// out[m, n] = x[m, k] · w[n, k]ᵀ on a GPU for few rows: weights go from memory to tensor cores through registers alone.
//
// Weights are the left factor of the tensor cores' product, 16 of them down, so that 8 rows of activations fill its
// other side: with one row 7/8 of the products are of zeros, which memory leaves time for. The 8 warps of a block are
// N_WARPS across its outputs, so that more rows of activations are read once for more of them, and the rest along the
// inner dimension, which blocks (grid y) divide further; sums meet in a fixed order, so results repeat.
//
// Layout, for all kinds of weights: tiles of 16 outputs, each a stream of chunks of 64 of the inner dimension, each 32
// lanes of 16 bytes once or more. In which order a chunk's elements meet is free as long as weights and activations
// agree; it is chosen so that a lane reads 16 consecutive bytes of activations. A warp goes by steps of a chunk or two.
//
// What is read from memory is asked for before it is needed: weights with their scales LOADS ahead, activations, which
// the first-level cache mostly has, one chunk ahead where registers allow it. Nothing waits in the loop.
#pragma once

#include "gpu_device.h"
#include "gpu_last_block.h"

namespace codesign::gpu {

constexpr int LANES = 32, WARPS = 8, THREADS = LANES * WARPS;
constexpr int TILE_ROWS = 8, TILE_OUTPUTS = 16, CHUNK = 64;
constexpr int M_TILES = CODESIGN_M_TILES, N_TILES = CODESIGN_N_TILES, N_WARPS = CODESIGN_N_WARPS;
constexpr int K_WARPS = WARPS / N_WARPS, BLOCK_OUTPUTS = N_WARPS * N_TILES * TILE_OUTPUTS;
constexpr int OUTPUT_MULTIPLE = 128; // packing fills up to this, whatever a block computes
// Loads of 16 bytes that each lane keeps in flight; many rows leave fewer registers for them.
constexpr int LOADS = M_TILES == 8 ? 4 : 8;
constexpr bool ROWS_AHEAD = M_TILES <= 2;

DEVICE int lane() { return thread() % LANES; }
DEVICE int warp() { return thread() / LANES; }
// The row of a fragment, and the place among the four lanes that share it.
DEVICE int fragment_row() { return lane() / 4; }
DEVICE int fragment_quarter() { return lane() % 4; }

template <class Sum> using Sums = Sum[M_TILES][N_TILES][4];

DEVICE int padded_outputs(int n) { return (n + OUTPUT_MULTIPLE - 1) / OUTPUT_MULTIPLE * OUTPUT_MULTIPLE; }

// Which row of activations and which output a sum is of.
DEVICE int row_of(int m_tile, int c) { return m_tile * TILE_ROWS + 2 * fragment_quarter() + c % 2; }
DEVICE int first_tile() { return (block_x() * N_WARPS + warp() % N_WARPS) * N_TILES; }
DEVICE int output_of(int n_tile, int c) { return (first_tile() + n_tile) * TILE_OUTPUTS + fragment_row() + 8 * (c / 2); }

struct Range {
    int begin, end;
};

// The steps of this warp: all warps of all blocks that share outputs divide them evenly.
DEVICE Range steps_of_warp(int steps) {
    const uint32_t parts = grid_y() * K_WARPS, part = of_warp(block_y() * K_WARPS + warp() / N_WARPS);
    return {int(steps * part / parts), int(steps * (part + 1) / parts)};
}

template <class Weights, class Sum> DEVICE void multiply_steps(const Weights &weights, int steps, Sums<Sum> &sums) {
    constexpr int WANTED = LOADS / (N_TILES * Weights::PIECES), DEPTH = WANTED < 2 ? 2 : WANTED;
    const Range range = steps_of_warp(steps);
    typename Weights::Fetched ahead[DEPTH];
#pragma unroll
    for (int d = 0; d < DEPTH; d++) weights.fetch(ahead[d], range.begin + d, range.begin + d < range.end);
    typename Weights::Rows rows[2] = {}; // of this chunk and of the next, in turn
    if (ROWS_AHEAD) weights.load(rows[0], range.begin);
    for (int first = range.begin; first < range.end; first += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int step = first + d;
            if (step < range.end) weights.multiply(ahead[d], rows, step, d * Weights::CHUNKS % 2, sums);
            weights.fetch(ahead[d], step + DEPTH, step + DEPTH < range.end);
        }
    }
}

// Leaves the sums of all warps of the block that have the same outputs in the first of them.
template <class Sum> DEVICE void sum_over_warps(Sums<Sum> &sums) {
    constexpr int COUNT = M_TILES * N_TILES * 4;
    Sum *shared = (Sum *)shared_memory() + lane();
    Sum *flat = &sums[0][0][0];
    if (warp() >= N_WARPS)
#pragma unroll
        for (int i = 0; i < COUNT; i++) shared[((warp() - N_WARPS) * COUNT + i) * LANES] = flat[i];
    sync_block();
    if (warp() >= N_WARPS) return;
#pragma unroll
    for (int other = 0; other < K_WARPS - 1; other++)
#pragma unroll
        for (int i = 0; i < COUNT; i++) flat[i] += shared[((other * N_WARPS + warp()) * COUNT + i) * LANES];
}

// Where results go; `partial` holds [grid y][m][n_padded] sums and `arrived` a zero per grid x, where grid y is above 1.
template <class Sum> struct Output {
    uint16_t *out;
    Sum *partial;
    uint32_t *arrived;
    int m, n, n_padded;
};

template <class Weights, class Sum>
DEVICE void write_all(const Weights &weights, const Output<Sum> &to, const Sums<Sum> &sums) {
#pragma unroll
    for (int m_tile = 0; m_tile < M_TILES; m_tile++)
#pragma unroll
        for (int n_tile = 0; n_tile < N_TILES; n_tile++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int row = row_of(m_tile, c), output = output_of(n_tile, c);
                if (row >= to.m || output >= to.n) continue;
                if (grid_y() == 1)
                    to.out[int64_t(row) * to.n + output] = weights.finish(sums[m_tile][n_tile][c], row, output);
                else
                    to.partial[(int64_t(block_y()) * to.m + row) * to.n_padded + output] = sums[m_tile][n_tile][c];
            }
}

// The last block of those that share outputs adds up what all have written, always in the same order.
template <class Weights, class Sum> DEVICE void finish_as_last(const Weights &weights, const Output<Sum> &to) {
    if (!is_last(to.arrived + block_x(), grid_y())) return;
    for (int i = thread(); i < to.m * BLOCK_OUTPUTS; i += THREADS) {
        const int row = i / BLOCK_OUTPUTS, output = block_x() * BLOCK_OUTPUTS + i % BLOCK_OUTPUTS;
        if (output >= to.n) continue;
        Sum sum = 0;
        for (int y = 0; y < grid_y(); y++) sum += to.partial[(int64_t(y) * to.m + row) * to.n_padded + output];
        to.out[int64_t(row) * to.n + output] = weights.finish(sum, row, output);
    }
    if (thread() == 0) to.arrived[block_x()] = 0;
}

template <class Weights, class Sum>
DEVICE void skinny_gemm(const Weights &weights, const Output<Sum> &to, int steps) {
    Sums<Sum> sums = {};
    multiply_steps<Weights, Sum>(weights, steps, sums);
    sum_over_warps<Sum>(sums);
    if (warp() < N_WARPS) write_all(weights, to, sums);
    if (grid_y() > 1) finish_as_last(weights, to);
}

} // namespace codesign::gpu
