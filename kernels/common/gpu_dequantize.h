// Weights of 4 or 8 bits written out as 16-bit numbers w[n, k], for a library's product.
//
// The layout lets it run at the speed of memory: a lane reads 16 bytes, which hold 8 neighbouring inputs of each of two
// rows for each half of a chunk, and writes those as 16 bytes; the four lanes of a row fill 64 bytes, two whole sectors.
// Scales are applied in float, so that each weight is rounded once.
#pragma once
#include "gpu_weight_only.h"

namespace codesign::gpu {

// Chunks of a warp: with two loads of 16 bytes per lane small matrices still fill all multiprocessors.
constexpr int CHUNKS_AHEAD = 2 / WeightOnly::CHUNK_PIECES;

DEVICE uint32_t scaled(uint32_t two, float scale) {
    return pair(widen(uint16_t(two)) * scale, widen(uint16_t(two >> 16)) * scale);
}

// Writes half a chunk of the two rows of outputs that this lane holds.
DEVICE void write_half(const WeightOnly &weights, const Words (&pieces)[WeightOnly::CHUNK_PIECES], int n_tile, int chunk,
                       int half, uint16_t *out, int n) {
    const int input = chunk * CHUNK + half * HALF_CHUNK + 8 * fragment_quarter();
    if (input >= weights.k) return;
    const int place = (GROUP ? (chunk * CHUNK + half * HALF_CHUNK) / (GROUP ? GROUP : 1) : 0) * TILE_PAIRS;
    const uint32_t scales = GROUP ? weights.scales[n_tile][place] : 0;
    const Points zero = HAS_ZEROS ? points_of(weights.zeros[n_tile][place]) : points_of_middle();
    uint32_t tiles[2][4];
#pragma unroll
    for (int j = 0; j < 2; j++) weights.decode(tiles[j], pieces, half, j, zero);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int output = output_of(n_tile, 2 * row);
        if (output >= n) continue;
        const float whole = DECODED_FACTOR * weights.factors[output];
        const float scale = GROUP ? whole * float_of_half(uint16_t(scales >> 16 * row)) : whole;
        store(out + int64_t(output) * weights.k + input,
              {scaled(tiles[0][row], scale), scaled(tiles[0][2 + row], scale), scaled(tiles[1][row], scale),
               scaled(tiles[1][2 + row], scale)});
    }
}

} // namespace codesign::gpu

// Grid x is a tile of outputs for each of N_WARPS.
KERNEL void BOUNDED(codesign::gpu::THREADS)
    dequantize(const codesign::gpu::Words *codes, const uint32_t *scales, const uint16_t *zeros, const float *factors,
               uint16_t *out, int n, int k) {
    using namespace codesign::gpu;
    constexpr int PIECES = WeightOnly::CHUNK_PIECES;
    const WeightOnly weights = weights_of({codes, scales, zeros, factors}, nullptr, 1, k);
    const int chunks = chunks_of(k), first = (block_y() * K_WARPS + warp() / N_WARPS) * CHUNKS_AHEAD;
#pragma unroll
    for (int tile = 0; tile < N_TILES; tile++) {
        Words ahead[CHUNKS_AHEAD][PIECES];
#pragma unroll
        for (int i = 0; i < CHUNKS_AHEAD * PIECES; i++)
            ahead[i / PIECES][i % PIECES] =
                load_once_if(first + i / PIECES < chunks, weights.codes[tile] + (first * PIECES + i) * LANES);
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS_AHEAD; i++)
            if (first + i / 2 < chunks) write_half(weights, ahead[i / 2], tile, first + i / 2, i % 2, out, n);
    }
}
LAUNCHED(dequantize)
