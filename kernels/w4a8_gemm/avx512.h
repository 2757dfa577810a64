// AVX-512 VNNI: tiles of up to 12 rows by 32 columns in 24 accumulators; the float sums stay in the first-level cache.
#pragma once

#include "common/int8_avx512.h"
#include "common/int8_rows.h"
#include "layout.h"

namespace {

constexpr int64_t LINE = 64; // 16 columns of 4 bytes

// The codes of 8 of k for 32 columns.
struct Weights {
    __m512i low[2], high[2];

    explicit Weights(const uint8_t *packed) {
        const __m512i half = _mm512_set1_epi8(15);
        for (int j = 0; j < 2; j++) {
            const __m512i both = _mm512_loadu_si512(packed + j * LINE);
            low[j] = _mm512_and_si512(both, half);
            high[j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
        }
    }
};

template <int ROWS> struct Group {
    // Adds scale · (Σ code · activation + zero · sum) of one group to out; `sums` are negative. Symmetric weights have the
    // zero point in them.
    static void run(const uint8_t *head, const int8_t *codes, const int32_t *sums, bool asymmetric, int64_t length,
                    float *out) {
        __m512i sum[ROWS][2];
        begin(sum, head + CODESIGN_INT8_COLUMNS * 2, sums, asymmetric);
        const uint8_t *weights = head + group_head_bytes(asymmetric);
        for (int64_t k = 8; k < length; k += 8, weights += 2 * LINE, codes += 8 * ROWS) {
            const Weights w(weights);
            add(sum, w.low, codes);
            add(sum, w.high, codes + 4 * ROWS);
        }
        const Weights w(weights);
        add(sum, w.low, codes);
        finish(sum, w.high, codes + 4 * ROWS, head, out);
    }

  private:
    static void begin(__m512i (&sum)[ROWS][2], const uint8_t *zeros, const int32_t *sums, bool asymmetric) {
        if (!asymmetric) {
            for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm512_set1_epi32(sums[r]);
            return;
        }
        for (int j = 0; j < 2; j++) {
            const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(zeros + 16 * j)));
            for (int r = 0; r < ROWS; r++) sum[r][j] = _mm512_mullo_epi32(zero, _mm512_set1_epi32(sums[r]));
        }
    }

    static void add(__m512i (&sum)[ROWS][2], const __m512i (&weights)[2], const int8_t *codes) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const __m512i four = codes_of_row(codes + 4 * r);
            dot(sum[r][0], weights[0], four);
            dot(sum[r][1], weights[1], four);
        }
    }

    // The last products of a group. Scaling row by row in between keeps the units of the dot product busy.
    static void finish(__m512i (&sum)[ROWS][2], const __m512i (&weights)[2], const int8_t *codes, const uint8_t *head,
                       float *out) {
        __m512 scale[2];
        for (int j = 0; j < 2; j++) scale[j] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(head + 32 * j)));
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const __m512i four = codes_of_row(codes + 4 * r);
            float *at = out + CODESIGN_INT8_COLUMNS * r;
            for (int j = 0; j < 2; j++) {
                dot(sum[r][j], weights[j], four);
                const __m512 whole = _mm512_cvtepi32_ps(sum[r][j]);
                _mm512_store_ps(at + 16 * j, _mm512_fmadd_ps(whole, scale[j], _mm512_load_ps(at + 16 * j)));
            }
            asm volatile("" : : "r"(out) : "memory"); // in this order, and not in registers: the next group needs them
        }
    }
};

template <int ROWS> struct Groups {
    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, float *out) {
        memset(out, 0, sizeof(float) * CODESIGN_INT8_COLUMNS * ROWS);
        const int8_t *codes = job->codes + tile.row * job->k;
        const int32_t *sums = job->sums + tile.row * job->groups;
        const bool asymmetric = job->asymmetric;
        for (int64_t k = 0; k < job->k; k += job->group, sums += ROWS) {
            const int64_t length = k + job->group < job->k ? job->group : job->k - k;
            Group<ROWS>::run(panel, codes, sums, asymmetric, length, out);
            panel += group_head_bytes(asymmetric) + CODESIGN_INT8_COLUMNS * length / 2;
            codes += ROWS * length;
        }
    }
};

struct Product {
    static constexpr int TILE_ROWS = 12;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t, float *out) {
        Rows<Groups, TILE_ROWS>::run(tile.rows, job, tile, panel, out);
    }
};

} // namespace
