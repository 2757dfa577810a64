// What the variants share that round activations to 16-bit integers, with one scale per row and block of k.
#pragma once

#include "float_bits.h"
#include "weight_only.h"

#include <cmath>
#include <cstring>

namespace {
namespace rounded {

using namespace codesign::weight_only;

constexpr float LARGEST = 127 * 256; // high and low byte both fit signed bytes

// The largest magnitude of `length` activations, as bits, so that infinities and NaN come out largest.
using LargestBits = uint32_t (*)(const Job &job, int64_t at, int64_t length);
// Writes activations times `inverse`, two bytes each in the order of the variant; returns their sum.
using Round = int32_t (*)(const Job &job, int64_t at, int64_t length, float inverse, uint8_t *out);

template <LargestBits LARGEST_BITS, Round ROUND> void prepare(const Job &job, int64_t begin, int64_t end) {
    const Layout &l = job.weights;
    for (int64_t row = begin; row < end; row++)
        for (int64_t b = 0; b < l.blocks; b++) {
            const int64_t at = row * l.k + b * l.block, length = l.block_k(b);
            const float largest = float_of_bits(LARGEST_BITS(job, at, length));
            // Below 1e-30 the inverse overflows; an infinity or a NaN makes the row NaN, as any sum with it would be.
            const bool finite = largest <= 3.4e38f;
            const float inverse = largest > 1e-30f ? LARGEST / largest : 0;
            uint8_t *out = job.rows + (b * job.m + row) * l.block * 2;
            job.row_sums[row * l.blocks + b] = finite ? ROUND(job, at, length, inverse, out) : 0;
            job.row_scales[row * l.blocks + b] = !finite ? NAN : inverse > 0 ? largest / LARGEST : 0;
        }
}

inline void write_row(const Job &job, int64_t panel, int64_t row, const float *sums) {
    const uint8_t *multipliers = job.packed + panel * job.weights.panel_bytes;
    const int64_t n = panel * COLUMNS, left = job.weights.n - n;
    for (int64_t i = 0; i < COLUMNS && i < left; i++) {
        float multiplier;
        memcpy(&multiplier, multipliers + i * 4, 4);
        const int64_t at = row * job.weights.n + n + i;
        if (job.out_dtype == FLOAT32)
            ((float *)job.out)[at] = sums[i] * multiplier;
        else
            ((uint16_t *)job.out)[at] = bf16_of_float(sums[i] * multiplier);
    }
}

// Adds the products of some rows with a block of a panel to their sums.
using Tile = void (*)(const Job &job, int64_t panel, int64_t block, int64_t row, float *out);

// `tiles` are by their number of rows, up to TALLEST.
template <int64_t TALLEST> void panel(const Job &job, int64_t p, Scratch scratch, const Tile *tiles) {
    const int64_t step = pass_rows(job.m);
    for (int64_t first = 0; first < job.m; first += step) {
        const int64_t rows = job.m - first < step ? job.m - first : step;
        memset(scratch.sums, 0, size_t(rows * COLUMNS * 4));
        for (int64_t b = 0; b < job.weights.blocks; b++)
            for (int64_t row = 0; row < rows; row += TALLEST)
                tiles[rows - row < TALLEST ? rows - row : TALLEST](job, p, b, first + row, scratch.sums + row * COLUMNS);
        for (int64_t row = 0; row < rows; row++) write_row(job, p, first + row, scratch.sums + row * COLUMNS);
    }
}

} // namespace rounded
} // namespace
