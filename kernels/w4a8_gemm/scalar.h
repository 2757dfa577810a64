// Plain C++.
#pragma once

#include "common/int8_rows.h"
#include "layout.h"

namespace {

struct Product {
    static constexpr int TILE_ROWS = 4;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t, float *out) {
        constexpr int64_t N = CODESIGN_INT8_COLUMNS;
        for (int64_t i = 0; i < tile.rows * N; i++) out[i] = 0;
        const int8_t *codes = job->codes + tile.row * job->k;
        const int32_t *sums = job->sums + tile.row * job->groups;
        for (int64_t k = 0; k < job->k; k += job->group, sums += tile.rows) {
            const int64_t length = k + job->group < job->k ? job->group : job->k - k;
            const uint8_t *weights = panel + group_head_bytes(job->asymmetric);
            for (int64_t row = 0; row < tile.rows; row++)
                for (int64_t column = 0; column < N; column++) {
                    const int32_t zero = job->asymmetric ? panel[N * 2 + column] : 1;
                    const int32_t found = sum_of(weights + column * 4, codes + row * 4, tile.rows * 4, length);
                    out[row * N + column] += scale_at(panel, column) * float(zero * sums[row] + found);
                }
            panel = weights + N * length / 2;
            codes += tile.rows * length;
        }
    }

  private:
    static float scale_at(const uint8_t *panel, int64_t column) {
        uint16_t scale;
        memcpy(&scale, panel + column * 2, 2);
        return float_of_half(scale);
    }

    static int32_t sum_of(const uint8_t *weights, const int8_t *codes, int64_t stride, int64_t length) {
        int32_t sum = 0;
        for (int64_t k = 0; k < length; k += 8, weights += CODESIGN_INT8_COLUMNS * 4, codes += 2 * stride)
            for (int64_t i = 0; i < 4; i++) sum += (weights[i] & 15) * codes[i] + (weights[i] >> 4) * codes[stride + i];
        return sum;
    }
};

} // namespace
