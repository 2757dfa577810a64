// Plain C++: float32 activations as they are, float32 arithmetic, any processor.
#pragma once

#include "common/float_bits.h"
#include "common/weight_only.h"

namespace {
namespace scalar {

using namespace codesign::weight_only;

inline float read(const void *x, int32_t dtype, int64_t at) {
    return dtype == FLOAT32 ? ((const float *)x)[at] : float_of_bf16(((const uint16_t *)x)[at]);
}

inline void write(void *out, int32_t dtype, int64_t at, float value) {
    if (dtype == FLOAT32)
        ((float *)out)[at] = value;
    else
        ((uint16_t *)out)[at] = bf16_of_float(value);
}

void prepare(const Job &job, int64_t begin, int64_t end) {
    const int64_t k = job.weights.k;
    for (int64_t i = begin * k; i < end * k; i++) ((float *)job.rows)[i] = read(job.x, job.x_dtype, i);
}

inline int32_t code_at(const Layout &l, const uint8_t *codes, int64_t i, int64_t column) {
    if (l.bits == 8) return codes[i / 4 * COLUMNS * 4 + column * 4 + i % 4];
    const uint8_t pair = codes[i / 8 * COLUMNS * 4 + column * 4 + i % 4];
    return i % 8 < 4 ? pair & 15 : pair >> 4;
}

// One group of one column, as float32 weights before the column's multiplier.
void unpack(const Layout &l, const uint8_t *panel, int64_t b, int64_t column, float *weights) {
    const uint8_t *meta = panel + l.meta_offset(l.group ? b : 0);
    uint16_t half;
    memcpy(&half, meta + column * 2, 2);
    const int32_t zero = l.asymmetric ? meta[COLUMNS * 2 + column] : 1 << (l.bits - 1);
    for (int64_t i = 0; i < l.block_k(b); i++)
        weights[i] = float(code_at(l, panel + l.code_offset(b), i, column) - zero) * float_of_half(half);
}

void panel(const Job &job, int64_t p, Scratch scratch) {
    const Layout &l = job.weights;
    const uint8_t *panel = job.packed + p * l.panel_bytes;
    float *weights = (float *)scratch.block;
    for (int64_t n = p * COLUMNS; n < l.n && n < (p + 1) * COLUMNS; n++) {
        float multiplier;
        memcpy(&multiplier, panel + n % COLUMNS * 4, 4);
        for (int64_t first = 0; first < job.m; first += MAX_ROWS) {
            const int64_t rows = job.m - first < MAX_ROWS ? job.m - first : MAX_ROWS;
            memset(scratch.sums, 0, size_t(rows) * 4);
            for (int64_t b = 0; b < l.blocks; b++) {
                unpack(l, panel, b, n % COLUMNS, weights);
                for (int64_t row = 0; row < rows; row++) {
                    const float *x = (const float *)job.rows + (first + row) * l.k + b * l.block;
                    float sum = 0;
                    for (int64_t i = 0; i < l.block_k(b); i++) sum += x[i] * weights[i];
                    scratch.sums[row] += sum;
                }
            }
            for (int64_t row = 0; row < rows; row++)
                write(job.out, job.out_dtype, (first + row) * l.n + n, scratch.sums[row] * multiplier);
        }
    }
}

constexpr Variant TABLE = {prepare, panel};

} // namespace scalar
} // namespace
