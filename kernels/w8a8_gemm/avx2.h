// AVX2: tiles of up to 3 rows by 32 columns in 12 accumulators. The product of pairs of bytes takes unsigned times signed
// and saturates at 16 bits: |weight| times the activation with the weight's sign is at most 2 · 128 · 127, which fits, and
// needs no sums of activations.
#pragma once

#include "common/int8_rows.h"

#include <immintrin.h>

namespace {

constexpr int64_t STEP_BYTES = CODESIGN_INT8_COLUMNS * 4; // four of k
constexpr int VECTORS = 4;                                // of eight columns

template <int ROWS> struct Panel {
    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *weights, float *out) {
        const int8_t *codes = job->codes + tile.row * job->k;
        __m256i sum[ROWS][VECTORS] = {};
        for (int64_t k = 0; k < job->k; k += 4, weights += STEP_BYTES, codes += 4 * ROWS) add(sum, weights, codes);
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < VECTORS; j++)
                _mm256_storeu_ps(out + CODESIGN_INT8_COLUMNS * r + 8 * j, _mm256_cvtepi32_ps(sum[r][j]));
    }

  private:
    static void add(__m256i (&sum)[ROWS][VECTORS], const uint8_t *weights, const int8_t *codes) {
        const __m256i flip = _mm256_set1_epi8(-128), one = _mm256_set1_epi16(1);
        for (int j = 0; j < VECTORS; j++) {
            const __m256i stored = _mm256_loadu_si256((const __m256i *)(weights + 32 * j));
            const __m256i weight = _mm256_xor_si256(stored, flip), magnitude = _mm256_abs_epi8(weight);
            for (int r = 0; r < ROWS; r++) {
                int32_t value;
                memcpy(&value, codes + 4 * r, 4);
                const __m256i signed_codes = _mm256_sign_epi8(_mm256_set1_epi32(value), weight);
                const __m256i pairs = _mm256_maddubs_epi16(magnitude, signed_codes);
                sum[r][j] = _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(pairs, one));
            }
        }
    }
};

struct Product {
    static constexpr int TILE_ROWS = 3;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t, float *out) {
        Rows<Panel, TILE_ROWS>::run(tile.rows, job, tile, panel, out);
    }
};

} // namespace
