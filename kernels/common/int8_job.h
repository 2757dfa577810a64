// What the kernels with int8 activations (w4a8_gemm, w8a8_gemm) share: one call, its tiles of rows, the packed panels,
// and the table that each variant exports.
//
// Packed weights, one stream per panel of 32 columns: float factor[32], then blocks in the order of reading.
// Activations are rounded to int8 inside the call and stored per tile of rows as [k / 4][row][4 of k], so that a kernel
// broadcasts four codes of a row from one address; the row stride of a plain matrix would put rows in one cache set.
#pragma once

#include <stdint.h>

constexpr int64_t CODESIGN_INT8_COLUMNS = 32;
constexpr int64_t CODESIGN_INT8_FACTOR_BYTES = CODESIGN_INT8_COLUMNS * 4;

struct codesign_int8_job {
    const void *x;          // [m, k]
    void *out;              // [m, n]
    const uint8_t *packed;  // [panel][panel_bytes]
    int64_t m, n, k;
    int64_t group, groups;  // of k that share one sum of activations; the last may be shorter
    int64_t panel_bytes;
    int32_t x_dtype, out_dtype, asymmetric;
    int32_t sum_factor;     // the sums are stored multiplied by it
    float static_scale;     // of the activations; 0: one per row, from its largest magnitude
    int8_t *codes;          // [tile][k / 4][row][4]
    int32_t *sums;          // [tile][group][row]
    float *row_scales;      // [m]
};

struct codesign_int8_variant {
    int32_t tile_rows; // the most rows of a tile
    void (*quantize)(const codesign_int8_job *job, int64_t tile_begin, int64_t tile_end);
    void (*multiply)(const codesign_int8_job *job, int64_t panel_begin, int64_t panel_end);
};

namespace {

// Rows are spread evenly over as few tiles as possible.
struct Tile {
    int64_t row, rows;
};

inline int64_t tile_count(int64_t m, int64_t tile_rows) { return (m + tile_rows - 1) / tile_rows; }

inline Tile tile_at(int64_t m, int64_t tiles, int64_t index) {
    const int64_t low = m / tiles, longer = m % tiles;
    return {index * low + (index < longer ? index : longer), low + (index < longer)};
}

inline int64_t panel_count(int64_t n) { return (n + CODESIGN_INT8_COLUMNS - 1) / CODESIGN_INT8_COLUMNS; }

} // namespace
