// Sums of products of bytes for up to four rows by 16 columns, with the dot product of NEON or its matrix product.
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int QUADS = 4; // vectors of four columns

// Weights of 16 columns, four of k.
struct Line {
    int8x16_t quad[QUADS];
};

#if defined(__ARM_FEATURE_MATMUL_INT8)

template <int ROWS> struct Sums {
    // Of rows 2p, 2p + 1 and columns 2c, 2c + 1: a 2 by 2 matrix.
    int32x4_t sum[(ROWS + 1) / 2][2 * QUADS];

    Sums() {
        for (auto &pair : sum)
            for (int32x4_t &one : pair) one = vdupq_n_s32(0);
    }

    // Adds eight of k: `codes` are [2][ROWS][4].
    void add(const Line &first, const Line &second, const int8_t *codes) {
        int8x16_t weights[2 * QUADS];
#pragma GCC unroll 4
        for (int q = 0; q < QUADS; q++) {
            const int32x4_t a = vreinterpretq_s32_s8(first.quad[q]), b = vreinterpretq_s32_s8(second.quad[q]);
            weights[2 * q] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
            weights[2 * q + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
        }
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; r += 2) {
            const int32x2_t now = two_rows(codes + 4 * r, r + 1 < ROWS), next = two_rows(codes + 4 * (ROWS + r), r + 1 < ROWS);
            const int8x16_t both = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(now, next), vzip2_s32(now, next)));
#pragma GCC unroll 8
            for (int c = 0; c < 2 * QUADS; c++) sum[r / 2][c] = vmmlaq_s32(sum[r / 2][c], both, weights[c]);
        }
    }

    int32x4_t of(int row, int q) const {
        const int32x4_t left = sum[row / 2][2 * q], right = sum[row / 2][2 * q + 1];
        return row % 2 ? vcombine_s32(vget_high_s32(left), vget_high_s32(right))
                       : vcombine_s32(vget_low_s32(left), vget_low_s32(right));
    }

  private:
    // Four codes each of a row and the next, if there is one.
    static int32x2_t two_rows(const int8_t *codes, bool both) {
        int32_t values[2] = {};
        memcpy(values, codes, both ? 8 : 4);
        return vld1_s32(values);
    }
};

#else

template <int ROWS> struct Sums {
    int32x4_t sum[ROWS][QUADS];

    Sums() {
        for (auto &row : sum)
            for (int32x4_t &one : row) one = vdupq_n_s32(0);
    }

    // Adds eight of k: `codes` are [2][ROWS][4].
    void add(const Line &first, const Line &second, const int8_t *codes) {
        add_four(first, codes);
        add_four(second, codes + 4 * ROWS);
    }

    int32x4_t of(int row, int q) const { return sum[row][q]; }

  private:
    void add_four(const Line &line, const int8_t *codes) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            int32_t four;
            memcpy(&four, codes + 4 * r, 4);
            const int8x16_t row = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 4
            for (int q = 0; q < QUADS; q++) sum[r][q] = vdotq_s32(sum[r][q], line.quad[q], row);
        }
    }
};

#endif

} // namespace
