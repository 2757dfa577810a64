// AVX2: tiles of up to 4 rows by 16 columns, half a panel at a time. Products of pairs of bytes are added up in 16 bits
// over 32 of k: eight times 2 · 15 · 127 stays below 2^15.
#pragma once

#include "common/int8_rows.h"
#include "layout.h"

#include <immintrin.h>

namespace {

constexpr int64_t HALF = 16;       // columns
constexpr int64_t LINE_BYTES = 64; // of one half, eight of k
constexpr int VECTORS = 2;         // of eight columns

template <int ROWS> struct Groups {
    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, float *out) {
        memset(out, 0, sizeof(float) * CODESIGN_INT8_COLUMNS * ROWS);
        const int8_t *codes = job->codes + tile.row * job->k;
        const int32_t *sums = job->sums + tile.row * job->groups;
        const int64_t head_bytes = group_head_bytes(job->asymmetric);
        for (int64_t k = 0; k < job->k; k += job->group, sums += ROWS) {
            const int64_t length = k + job->group < job->k ? job->group : job->k - k;
            for (int64_t column = 0; column < CODESIGN_INT8_COLUMNS; column += HALF) {
                __m256i sum[ROWS][VECTORS];
                begin(sum, panel + CODESIGN_INT8_COLUMNS * 2 + column, sums, job->asymmetric);
                const uint8_t *weights = panel + head_bytes + column * 4;
                for (int64_t i = 0; i < length; i += STEP) add(sum, weights + i * LINE_BYTES / 4, codes + i * ROWS);
                finish(sum, panel + column * 2, out + column);
            }
            panel += head_bytes + CODESIGN_INT8_COLUMNS * length / 2;
            codes += ROWS * length;
        }
    }

  private:
    static void begin(__m256i (&sum)[ROWS][VECTORS], const uint8_t *zeros, const int32_t *sums, bool asymmetric) {
        for (int j = 0; j < VECTORS; j++) {
            const __m256i zero = asymmetric ? _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + 8 * j)))
                                            : _mm256_set1_epi32(1);
            for (int r = 0; r < ROWS; r++) sum[r][j] = _mm256_mullo_epi32(zero, _mm256_set1_epi32(sums[r]));
        }
    }

    static void add(__m256i (&sum)[ROWS][VECTORS], const uint8_t *weights, const int8_t *codes) {
        const __m256i half = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
        __m256i pairs[ROWS][VECTORS] = {};
        for (int64_t k = 0; k < STEP; k += 8, weights += 2 * LINE_BYTES, codes += 8 * ROWS)
            for (int j = 0; j < VECTORS; j++) {
                const __m256i both = _mm256_loadu_si256((const __m256i *)(weights + 32 * j));
                const __m256i low = _mm256_and_si256(both, half);
                const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
                for (int r = 0; r < ROWS; r++) {
                    const __m256i now = _mm256_maddubs_epi16(low, four(codes + 4 * r));
                    const __m256i next = _mm256_maddubs_epi16(high, four(codes + 4 * (ROWS + r)));
                    pairs[r][j] = _mm256_add_epi16(pairs[r][j], _mm256_add_epi16(now, next));
                }
            }
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < VECTORS; j++)
                sum[r][j] = _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(pairs[r][j], one));
    }

    static void finish(const __m256i (&sum)[ROWS][VECTORS], const uint8_t *scales, float *out) {
        for (int j = 0; j < VECTORS; j++) {
            const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + 16 * j)));
            for (int r = 0; r < ROWS; r++) {
                float *at = out + CODESIGN_INT8_COLUMNS * r + 8 * j;
                const __m256 whole = _mm256_cvtepi32_ps(sum[r][j]);
                _mm256_storeu_ps(at, _mm256_fmadd_ps(whole, scale, _mm256_loadu_ps(at)));
            }
        }
    }

    // Four codes of one row for all columns.
    static __m256i four(const int8_t *codes) {
        int32_t value;
        memcpy(&value, codes, 4);
        return _mm256_set1_epi32(value);
    }
};

struct Product {
    static constexpr int TILE_ROWS = 4;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t, float *out) {
        Rows<Groups, TILE_ROWS>::run(tile.rows, job, tile, panel, out);
    }
};

} // namespace
