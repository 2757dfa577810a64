// Weights of 4 or 8 bits against 16-bit activations on a GPU; see gpu_skinny_gemm.h for the loop around it.
//
// CODESIGN_GROUP inputs share a scale: 32, 64, 128, or 0 for one scale per output. Scales of groups are half precision,
// relative to a factor of the output in float; zero points are bytes. Both lie as [tiles][groups][8][2]: rows g and
// g + 8 of a tile, which a lane needs, are neighbours.
#pragma once

#include "gpu_codes.h"
#include "gpu_skinny_gemm.h"

namespace codesign::gpu {

constexpr int GROUP = CODESIGN_GROUP, HALF_CHUNK = CHUNK / 2, TILE_PAIRS = TILE_OUTPUTS / 2;
constexpr bool HAS_ZEROS = CODESIGN_ZEROS;
// Blocks that a multiprocessor must have registers for: one more than the compiler would choose where it spills nothing.
constexpr bool IS_LEAN = BITS == 4 && GROUP == 128 && !HAS_ZEROS && M_TILES <= 2 && IS_HOPPER;
constexpr int BLOCKS_MIN = (M_TILES == 1 ? 2 : 1) + IS_LEAN;

// Chunks of the inner dimension, whole groups.
DEVICE int chunks_of(int k) {
    constexpr int INPUTS = GROUP > CHUNK ? GROUP : CHUNK;
    return (k + INPUTS - 1) / INPUTS * (INPUTS / CHUNK);
}
DEVICE int groups_of(int chunks) { return GROUP ? chunks * CHUNK / (GROUP ? GROUP : 1) : 1; }

// Element h, q, j, i of a chunk (half h of 32, quarter q of 8, tile j of 4) is input 32 h + 8 q + 4 j + i: the lanes of
// quarter q hold their 8 inputs of a half next to each other.
struct WeightOnly {
    // Chunks, loads of 16 bytes, inputs and groups of a step.
    static constexpr int CHUNKS = BITS == 4 && GROUP == 128 && M_TILES < 8 ? 2 : 1, CHUNK_PIECES = BITS / 4;
    static constexpr int PIECES = CHUNKS * CHUNK_PIECES, STEP = CHUNKS * CHUNK, GROUPS = GROUP == HALF_CHUNK ? 2 : 1;
    static constexpr int HALVES = ROWS_AHEAD ? 2 : 1; // of a chunk that are held at once

    struct Fetched {
        Words codes[N_TILES][PIECES];
        uint32_t scales[N_TILES][GROUPS];
        uint16_t zeros[N_TILES][GROUPS];
    };

    struct Rows {
        Words of[HALVES][M_TILES]; // the 8 inputs of a half of a chunk that this lane multiplies
    };

    // Where this lane's part of each tile and row begins.
    const Words *codes[N_TILES];
    const uint32_t *scales[N_TILES];
    const uint16_t *zeros[N_TILES];
    const uint16_t *rows[M_TILES];
    const float *factors;
    int k;
    Masks masks;

    DEVICE static int group_of(int step, int group) {
        return GROUP > STEP ? step / (GROUP > STEP ? GROUP / STEP : 1) : step * GROUPS + group;
    }

    DEVICE void fetch(Fetched &to, int step, bool wanted) const {
#pragma unroll
        for (int tile = 0; tile < N_TILES; tile++) {
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++)
                to.codes[tile][piece] = load_once_if(wanted, codes[tile] + (step * PIECES + piece) * LANES);
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                const int place = GROUP ? group_of(step, group) * TILE_PAIRS : 0;
                if (GROUP) to.scales[tile][group] = load_if(wanted, scales[tile] + place);
                if (HAS_ZEROS) to.zeros[tile][group] = load_if(wanted, zeros[tile] + place);
            }
        }
    }

    // The inputs of half chunk `part` from the beginning of a step. Rows beyond the last are the last again, their sums go
    // nowhere. Inputs beyond the last meet weights of zero: they must be numbers wherever the row has only numbers, so
    // what was there before stays.
    DEVICE void load_half(Rows &to, int step, int part) const {
        const bool wanted = step * STEP + part * HALF_CHUNK < k;
#pragma unroll
        for (int i = 0; i < M_TILES; i++)
            load_kept(wanted, rows[i] + step * STEP + part * HALF_CHUNK, to.of[part % HALVES][i]);
    }

    DEVICE void load(Rows &to, int step) const { load_half(to, step, 0), load_half(to, step, 1); }

    // Four pairs of a fragment from the pieces of a chunk.
    DEVICE void decode(uint32_t (&a)[4], const Words *pieces, int half, int j, const Points &zero) const {
        if (BITS == 4) {
            decode_nibbles(a, pieces[0].word[2 * half + j], zero, masks);
            return;
        }
        uint32_t first[2], second[2]; // of both rows
        const uint32_t minus = twice(-MAGIC_VALUE - 128.0f);
        decode_bytes(first, pieces[half % CHUNK_PIECES].word[2 * j], minus);
        decode_bytes(second, pieces[half % CHUNK_PIECES].word[2 * j + 1], minus);
        a[0] = first[0], a[1] = second[0], a[2] = first[1], a[3] = second[1];
    }

    // `turn` says which of `inputs` has the step's first chunk.
    DEVICE void multiply(const Fetched &own, Rows (&inputs)[2], int step, int turn, Sums<float> &sums) const {
        Sums<float> fresh = {};
#pragma unroll
        for (int part = 0; part < 2 * CHUNKS; part++) {
            const int half = part % 2, group = part % GROUPS, here = ROWS_AHEAD ? (turn + part / 2) % 2 : 0;
            load_half(inputs[ROWS_AHEAD ? 1 - here : 0], step, part + 2 * ROWS_AHEAD);
#pragma unroll
            for (int n_tile = 0; n_tile < N_TILES; n_tile++) {
                const Points zero = HAS_ZEROS ? points_of(own.zeros[n_tile][group]) : points_of_middle();
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    uint32_t a[4];
                    decode(a, own.codes[n_tile] + part / 2 * CHUNK_PIECES, half, j, zero);
#pragma unroll
                    for (int m_tile = 0; m_tile < M_TILES; m_tile++) {
                        const Words &eight = inputs[here].of[half % HALVES][m_tile];
                        const uint32_t b[2] = {eight.word[2 * j], eight.word[2 * j + 1]};
                        gpu::multiply(GROUP ? fresh[m_tile][n_tile] : sums[m_tile][n_tile], a, b);
                    }
                }
                if (GROUP == HALF_CHUNK || (GROUP && part + 1 == 2 * CHUNKS))
                    add_scaled(sums, fresh, own.scales[n_tile][group], n_tile);
            }
        }
    }

    DEVICE void add_scaled(Sums<float> &sums, Sums<float> &fresh, uint32_t scales, int n_tile) const {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float scale = float_of_half(uint16_t(scales >> 16 * (c / 2)));
#pragma unroll
            for (int m_tile = 0; m_tile < M_TILES; m_tile++) {
                sums[m_tile][n_tile][c] += scale * fresh[m_tile][n_tile][c];
                fresh[m_tile][n_tile][c] = 0;
            }
        }
    }

    DEVICE uint16_t finish(float sum, int, int output) const { return narrow(sum * DECODED_FACTOR * factors[output]); }
};

// What the kernels are given of weights.
struct Packed {
    const Words *codes;
    const uint32_t *scales;
    const uint16_t *zeros;
    const float *factors;
};

DEVICE WeightOnly weights_of(const Packed &from, const uint16_t *x, int m, int k) {
    const int chunks = chunks_of(k);
    WeightOnly to;
#pragma unroll
    for (int i = 0; i < N_TILES; i++) {
        const int64_t tile = first_tile() + i, pairs = tile * groups_of(chunks) * TILE_PAIRS + fragment_row();
        to.codes[i] = kept(from.codes + tile * chunks * (WeightOnly::CHUNK_PIECES * LANES) + lane());
        to.scales[i] = kept(from.scales + pairs);
        to.zeros[i] = kept(from.zeros + pairs);
    }
#pragma unroll
    for (int i = 0; i < M_TILES; i++) {
        const int64_t row = min(i * TILE_ROWS + fragment_row(), m - 1);
        const uint16_t *begin = x + row * k + 8 * fragment_quarter();
        to.rows[i] = M_TILES < 8 ? kept(begin) : begin; // registers are too few for all of 64 rows
    }
    to.factors = from.factors, to.k = k, to.masks = masks_of(k);
    return to;
}

} // namespace codesign::gpu

KERNEL void BOUNDED_BLOCKS(codesign::gpu::THREADS, codesign::gpu::BLOCKS_MIN)
    weight_only(const codesign::gpu::Words *codes, const uint32_t *scales, const uint16_t *zeros, const float *factors,
                const uint16_t *x, uint16_t *out, float *partial, uint32_t *arrived, int m, int n, int k) {
    using namespace codesign::gpu;
    const WeightOnly weights = weights_of({codes, scales, zeros, factors}, x, m, k);
    const Output<float> to = {out, partial, arrived, m, n, padded_outputs(n)};
    skinny_gemm<WeightOnly, float>(weights, to, chunks_of(k) / WeightOnly::CHUNKS);
}
LAUNCHED(weight_only)
