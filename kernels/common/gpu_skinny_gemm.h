// out[m, n] = x[m, k] · w[n, k]ᵀ on a GPU for few rows: weights go from memory to tensor cores through registers alone.
//
// Weights are the left factor of the tensor cores' product, 16 of them down, so that 8 rows of activations fill its
// other side: with one row 7/8 of the products are of zeros, which memory leaves time for. The inner dimension is
// divided over the 8 warps of a block and over blocks (grid y); sums meet in a fixed order, so results repeat.
//
// Layout, for all kinds of weights: tiles of 16 outputs, each a stream of chunks of 64 of the inner dimension, each 32
// lanes of PIECES x 16 bytes. In which order a chunk's elements meet is free as long as weights and activations agree;
// it is chosen so that a lane reads 16 consecutive bytes of activations (see `Weights::multiply`).
#pragma once

#include "gpu_device.h"

namespace codesign::gpu {

constexpr int LANES = 32, WARPS = 8, THREADS = LANES * WARPS;
constexpr int TILE_ROWS = 8, TILE_OUTPUTS = 16, CHUNK = 64;
constexpr int M_TILES = CODESIGN_M_TILES, N_TILES = CODESIGN_N_TILES;
// Loads of 16 bytes that each lane keeps in flight; many rows leave fewer registers for them.
constexpr int LOADS = M_TILES == 8 ? 4 : 8;

DEVICE int lane() { return thread() % LANES; }
DEVICE int warp() { return thread() / LANES; }
// The row of a fragment, and the place among the four lanes that share it.
DEVICE int fragment_row() { return lane() / 4; }
DEVICE int fragment_quarter() { return lane() % 4; }

template <class Sum> using Sums = Sum[M_TILES][N_TILES][4];

// Which row of activations and which output of the block a sum is of.
DEVICE int row_of(int m_tile, int c) { return m_tile * TILE_ROWS + 2 * fragment_quarter() + c % 2; }
DEVICE int output_of(int n_tile, int c) {
    return (block_x() * N_TILES + n_tile) * TILE_OUTPUTS + fragment_row() + 8 * (c / 2);
}

struct Range {
    int begin, end;
};

// The chunks of this warp: all warps of all blocks that share the outputs divide them evenly.
DEVICE Range chunks_of_warp(int chunks) {
    const int64_t parts = grid_y() * WARPS, part = block_y() * WARPS + warp();
    return {int(chunks * part / parts), int(chunks * (part + 1) / parts)};
}

template <class Weights, class Sum> DEVICE void multiply_chunks(const Weights &weights, int chunks, Sums<Sum> &sums) {
    constexpr int PIECES = Weights::PIECES, DEPTH = LOADS / (N_TILES * PIECES);
    const Range range = chunks_of_warp(chunks);
    const Words *stream = weights.codes + int64_t(block_x()) * N_TILES * chunks * PIECES * LANES + lane();
    Words ahead[DEPTH][N_TILES][PIECES];
    const auto fetch = [&](Words(&to)[N_TILES][PIECES], int chunk) {
#pragma unroll
        for (int tile = 0; tile < N_TILES; tile++)
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++)
                to[tile][piece] = load_once(stream + ((int64_t(tile) * chunks + chunk) * PIECES + piece) * LANES);
    };
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (range.begin + d < range.end) fetch(ahead[d], range.begin + d);
    for (int first = range.begin; first < range.end; first += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int chunk = first + d;
            if (chunk < range.end) weights.multiply(ahead[d], chunk, sums);
            if (chunk + DEPTH < range.end) fetch(ahead[d], chunk + DEPTH);
        }
    }
}

// Leaves the sums of all warps of the block in warp 0.
template <class Sum> DEVICE void sum_over_warps(Sums<Sum> &sums) {
    constexpr int COUNT = M_TILES * N_TILES * 4;
    Sum *shared = (Sum *)shared_memory();
    Sum *flat = &sums[0][0][0];
#pragma unroll
    for (int half = WARPS / 2; half; half /= 2) {
        const int place = warp() % half * COUNT * LANES + lane();
        if (warp() >= half && warp() < 2 * half)
#pragma unroll
            for (int i = 0; i < COUNT; i++) shared[place + i * LANES] = flat[i];
        sync_block();
        if (warp() < half)
#pragma unroll
            for (int i = 0; i < COUNT; i++) flat[i] += shared[place + i * LANES];
        sync_block();
    }
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
    constexpr int OUTPUTS = N_TILES * TILE_OUTPUTS;
    uint32_t *shared = (uint32_t *)shared_memory();
    fence();
    sync_block();
    if (thread() == 0) shared[0] = count_up(to.arrived + block_x());
    sync_block();
    if (shared[0] + 1 != uint32_t(grid_y())) return;
    fence();
    for (int i = thread(); i < to.m * OUTPUTS; i += THREADS) {
        const int row = i / OUTPUTS, output = block_x() * OUTPUTS + i % OUTPUTS;
        if (output >= to.n) continue;
        Sum sum = 0;
        for (int y = 0; y < grid_y(); y++) sum += to.partial[(int64_t(y) * to.m + row) * to.n_padded + output];
        to.out[int64_t(row) * to.n + output] = weights.finish(sum, row, output);
    }
    if (thread() == 0) to.arrived[block_x()] = 0;
}

template <class Weights, class Sum>
DEVICE void skinny_gemm(const Weights &weights, const Output<Sum> &to, int chunks) {
    Sums<Sum> sums = {};
    multiply_chunks<Weights, Sum>(weights, chunks, sums);
    sum_over_warps<Sum>(sums);
    if (warp() == 0) write_all(weights, to, sums);
    if (grid_y() > 1) finish_as_last(weights, to);
}

} // namespace codesign::gpu
