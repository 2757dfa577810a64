// AVX-512 VNNI: tiles of up to 12 rows by 32 columns in 24 accumulators.
#pragma once

#include "common/int8_avx512.h"
#include "common/int8_rows.h"

namespace {

constexpr int64_t LINE = 64; // 16 columns of 4 bytes

template <int ROWS> struct Panel {
    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *weights, int64_t ahead, float *out) {
        const int8_t *codes = job->codes + tile.row * job->k;
        __m512i sum[ROWS][2];
        for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm512_set1_epi32(job->sums[tile.row + r]);
        for (int64_t k = 0; k < job->k; k += 4, weights += 2 * LINE, codes += 4 * ROWS) {
            const __m512i w0 = _mm512_loadu_si512(weights), w1 = _mm512_loadu_si512(weights + LINE);
            fetch(weights + ahead);
            fetch(weights + ahead + LINE);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const __m512i four = codes_of_row(codes + 4 * r);
                dot(sum[r][0], w0, four);
                dot(sum[r][1], w1, four);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < 2; j++)
                _mm512_store_ps(out + CODESIGN_INT8_COLUMNS * r + 16 * j, _mm512_cvtepi32_ps(sum[r][j]));
    }
};

struct Product {
    static constexpr int TILE_ROWS = 12;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t ahead, float *out) {
        Rows<Panel, TILE_ROWS>::run(tile.rows, job, tile, panel, ahead, out);
    }
};

} // namespace
