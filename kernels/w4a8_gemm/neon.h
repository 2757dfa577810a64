// NEON: tiles of up to 4 rows by 16 columns, half a panel at a time.
#pragma once

#include "common/int8_neon.h"
#include "common/int8_rows.h"
#include "layout.h"

namespace {

constexpr int64_t HALF = 16;      // columns
constexpr int64_t LINE_BYTES = 64; // of one half, eight of k

template <int ROWS> struct Groups {
    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, float *out) {
        memset(out, 0, sizeof(float) * CODESIGN_INT8_COLUMNS * ROWS);
        const int8_t *codes = job->codes + tile.row * job->k;
        const int32_t *sums = job->sums + tile.row * job->groups;
        for (int64_t k = 0; k < job->k; k += job->group, sums += ROWS) {
            const int64_t length = k + job->group < job->k ? job->group : job->k - k;
            for (int64_t column = 0; column < CODESIGN_INT8_COLUMNS; column += HALF) {
                const uint8_t *weights = panel + group_head_bytes(job->asymmetric) + column * 4;
                const Sums<ROWS> found = sums_of(weights, codes, length);
                finish(found, panel, column, job->asymmetric, sums, out + column);
            }
            panel += group_head_bytes(job->asymmetric) + CODESIGN_INT8_COLUMNS * length / 2;
            codes += ROWS * length;
        }
    }

  private:
    static Sums<ROWS> sums_of(const uint8_t *weights, const int8_t *codes, int64_t length) {
        Sums<ROWS> found;
        for (int64_t k = 0; k < length; k += 8, weights += 2 * LINE_BYTES, codes += 8 * ROWS) {
            Line low, high;
            for (int q = 0; q < QUADS; q++) {
                const uint8x16_t both = vld1q_u8(weights + 16 * q);
                low.quad[q] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                high.quad[q] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            }
            found.add(low, high, codes);
        }
        return found;
    }

    // out += scale · (sum + zero · sum of activations); symmetric weights have the zero point in the latter.
    static void finish(const Sums<ROWS> &found, const uint8_t *head, int64_t column, bool asymmetric, const int32_t *sums,
                       float *out) {
        for (int q = 0; q < QUADS; q++) {
            const int64_t at = column + 4 * q;
            int32_t zeros[4] = {1, 1, 1, 1};
            for (int i = 0; asymmetric && i < 4; i++) zeros[i] = head[CODESIGN_INT8_COLUMNS * 2 + at + i];
            const int32x4_t zero = vld1q_s32(zeros);
            uint16_t bits[4];
            memcpy(bits, head + 2 * at, sizeof bits);
            const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(bits)));
            for (int r = 0; r < ROWS; r++) {
                float *place = out + CODESIGN_INT8_COLUMNS * r + 4 * q;
                const float32x4_t whole = vcvtq_f32_s32(vmlaq_n_s32(found.of(r, q), zero, sums[r]));
                vst1q_f32(place, vfmaq_f32(vld1q_f32(place), whole, scale));
            }
        }
    }
};

struct Product {
    static constexpr int TILE_ROWS = 4;

    static void run(const codesign_int8_job *job, Tile tile, const uint8_t *panel, int64_t, float *out) {
        Rows<Groups, TILE_ROWS>::run(tile.rows, job, tile, panel, out);
    }
};

} // namespace
