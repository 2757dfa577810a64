// Plain C++.
#pragma once

#include "common/int8_rows.h"

namespace {

struct Product {
    static constexpr int TILE_ROWS = 4;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t, float *out) {
        const int8_t *codes = job->codes + tile.row * job->k;
        const int32_t *sums = job->sums + tile.row;
        for (int64_t row = 0; row < tile.rows; row++)
            for (int64_t column = 0; column < CODESIGN_INT8_COLUMNS; column++)
                out[row * CODESIGN_INT8_COLUMNS + column] =
                    float(int32_t(uint32_t(sums[row]) + sum_of(panel + column * 4, codes + row * 4, tile.rows * 4, job->k)));
    }

  private:
    // Unsigned weights: the sum may pass 31 bits before the correction brings it back, which only unsigned numbers may.
    static uint32_t sum_of(const uint8_t *weights, const int8_t *codes, int64_t stride, int64_t length) {
        uint32_t sum = 0;
        for (int64_t k = 0; k < length; k += 4, weights += CODESIGN_INT8_COLUMNS * 4, codes += stride)
            for (int64_t i = 0; i < 4; i++) sum += uint32_t(weights[i] * codes[i]);
        return sum;
    }
};

} // namespace
