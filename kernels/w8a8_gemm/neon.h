// NEON: tiles of up to 4 rows by 16 columns, half a panel at a time. Its products take signed weights, so that the sums of
// activations are not needed.
#pragma once

#include "common/int8_neon.h"
#include "common/int8_rows.h"

namespace {

constexpr int64_t HALF = 16;                             // columns
constexpr int64_t STEP_BYTES = CODESIGN_INT8_COLUMNS * 4; // four of k

template <int ROWS> struct Panel {
    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, float *out) {
        for (int64_t column = 0; column < CODESIGN_INT8_COLUMNS; column += HALF) {
            const uint8_t *weights = panel + column * 4;
            const int8_t *codes = job->codes + tile.row * job->k;
            Sums<ROWS> found;
            for (int64_t k = 0; k < job->k; k += 8, weights += 2 * STEP_BYTES, codes += 8 * ROWS)
                found.add(line(weights), line(weights + STEP_BYTES), codes);
            for (int r = 0; r < ROWS; r++)
                for (int q = 0; q < QUADS; q++)
                    vst1q_f32(out + CODESIGN_INT8_COLUMNS * r + column + 4 * q, vcvtq_f32_s32(found.of(r, q)));
        }
    }

  private:
    static Line line(const uint8_t *weights) {
        Line found;
        for (int q = 0; q < QUADS; q++)
            found.quad[q] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(weights + 16 * q), vdupq_n_u8(128)));
        return found;
    }
};

struct Product {
    static constexpr int TILE_ROWS = 4;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t, float *out) {
        Rows<Panel, TILE_ROWS>::run(tile.rows, job, tile, panel, out);
    }
};

} // namespace
