// Weights of 4 or 8 bits against 16-bit activations on a GPU; see gpu_skinny_gemm.h for the loop around it.
//
// CODESIGN_GROUP inputs share a scale: 32, 64, 128, or 0 for one scale per output. Scales of groups are half precision,
// relative to a factor of the output in float; zero points are bytes.
#pragma once

#include "gpu_codes.h"
#include "gpu_skinny_gemm.h"

namespace codesign::gpu {

constexpr int GROUP = CODESIGN_GROUP, HALF_CHUNK = CHUNK / 2;
constexpr int OUTPUT_MULTIPLE = 4 * TILE_OUTPUTS; // packing fills up to this, whatever N_TILES is
constexpr bool HAS_ZEROS = CODESIGN_ZEROS;

DEVICE int padded_outputs(int n) { return (n + OUTPUT_MULTIPLE - 1) / OUTPUT_MULTIPLE * OUTPUT_MULTIPLE; }
DEVICE int chunks_of(int k) { return (k + CHUNK - 1) / CHUNK; }

// Element h, q, j, i of a chunk (half h of 32, quarter q of 8, tile j of 4) is input 32 h + 8 q + 4 j + i: the lanes of
// quarter q hold their 8 inputs of a half next to each other.
struct WeightOnly {
    static constexpr int PIECES = BITS / 4;

    const Words *codes;
    const uint16_t *scales; // [groups][n_padded]
    const uint8_t *zeros;   // [groups][n_padded], or null
    const float *factors;   // [n_padded]
    const uint16_t *x;
    int m, k, n_padded;

    DEVICE int64_t group_place(int chunk, int half, int output) const {
        const int group = GROUP ? (chunk * CHUNK + half * HALF_CHUNK) / (GROUP ? GROUP : 1) : 0;
        return int64_t(group) * n_padded + output;
    }

    DEVICE Points points(int chunk, int half, int n_tile) const {
        if (!HAS_ZEROS) return points_of(8.0f, 8.0f);
        return points_of(float(zeros[group_place(chunk, half, output_of(n_tile, 0))]),
                         float(zeros[group_place(chunk, half, output_of(n_tile, 2))]));
    }

    // The 8 inputs of a half that this lane multiplies, zeros beyond the last row and the last input.
    DEVICE Words activations(int chunk, int half, int m_tile) const {
        const int row = m_tile * TILE_ROWS + fragment_row();
        const int input = chunk * CHUNK + half * HALF_CHUNK + 8 * fragment_quarter();
        if (row >= m || input >= k) return {};
        return load(x + int64_t(row) * k + input);
    }

    DEVICE void decode(uint32_t (&a)[4], const Words (&pieces)[PIECES], int half, int j, const Points &zero) const {
        if (BITS == 4) {
            decode_nibbles(a, pieces[0].word[2 * half + j], zero);
            return;
        }
        uint32_t first[2], second[2]; // of both rows
        const uint32_t minus = twice(-MAGIC_VALUE - 128.0f);
        decode_bytes(first, pieces[half % PIECES].word[2 * j], minus);
        decode_bytes(second, pieces[half % PIECES].word[2 * j + 1], minus);
        a[0] = first[0], a[1] = second[0], a[2] = first[1], a[3] = second[1];
    }

    DEVICE void multiply(const Words (&chunk_codes)[N_TILES][PIECES], int chunk, Sums<float> &sums) const {
        Sums<float> fresh = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Words rows[M_TILES];
#pragma unroll
            for (int m_tile = 0; m_tile < M_TILES; m_tile++) rows[m_tile] = activations(chunk, half, m_tile);
#pragma unroll
            for (int n_tile = 0; n_tile < N_TILES; n_tile++) {
                const Points zero = points(chunk, half, n_tile);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    uint32_t a[4];
                    decode(a, chunk_codes[n_tile], half, j, zero);
#pragma unroll
                    for (int m_tile = 0; m_tile < M_TILES; m_tile++) {
                        const uint32_t b[2] = {rows[m_tile].word[2 * j], rows[m_tile].word[2 * j + 1]};
                        gpu::multiply(GROUP ? fresh[m_tile][n_tile] : sums[m_tile][n_tile], a, b);
                    }
                }
            }
            if (GROUP == HALF_CHUNK || (GROUP && half)) add_scaled(sums, fresh, chunk, half);
        }
    }

    DEVICE void add_scaled(Sums<float> &sums, Sums<float> &fresh, int chunk, int half) const {
#pragma unroll
        for (int n_tile = 0; n_tile < N_TILES; n_tile++)
#pragma unroll
            for (int c = 0; c < 4; c += 2) {
                const float scale = float_of_half(scales[group_place(chunk, half, output_of(n_tile, c))]);
#pragma unroll
                for (int m_tile = 0; m_tile < M_TILES; m_tile++)
#pragma unroll
                    for (int i = c; i < c + 2; i++) {
                        sums[m_tile][n_tile][i] += scale * fresh[m_tile][n_tile][i];
                        fresh[m_tile][n_tile][i] = 0;
                    }
            }
    }

    // What decoded codes of a group are multiplied with.
    DEVICE float scale(int chunk, int half, int output) const {
        const float whole = DECODED_FACTOR * factors[output];
        return GROUP ? whole * float_of_half(scales[group_place(chunk, half, output)]) : whole;
    }

    DEVICE uint16_t finish(float sum, int, int output) const { return narrow(sum * DECODED_FACTOR * factors[output]); }
};

} // namespace codesign::gpu

KERNEL void BOUNDED(codesign::gpu::THREADS)
    weight_only(const codesign::gpu::Words *codes, const uint16_t *scales, const uint8_t *zeros, const float *factors,
                const uint16_t *x, uint16_t *out, float *partial, uint32_t *arrived, int m, int n, int k) {
    using namespace codesign::gpu;
    const int n_padded = padded_outputs(n);
    const WeightOnly weights = {codes, scales, zeros, factors, x, m, k, n_padded};
    skinny_gemm<WeightOnly, float>(weights, {out, partial, arrived, m, n, n_padded}, chunks_of(k));
}
LAUNCHED(weight_only)
