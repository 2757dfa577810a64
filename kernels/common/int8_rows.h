// The parts of a variant that plain C++ expresses well: rounding activations to int8 and writing the outputs. Included by
// variant.cpp of each kernel, so that every variant gets its own copy with its own flags.
#pragma once

#include "float_bits.h"
#include "int8_job.h"
#include "int8_round.h"
#include "int8_run.h"

#include <string.h>

namespace {

constexpr uint32_t NOT_FINITE = 0x7f800000; // magnitudes from here on are infinite or not a number
constexpr float SMALLEST_MAXIMUM = 1e-36f;  // below it 127 / maximum would overflow; the row counts as zero

struct RowScale {
    float scale, inverse;
};

inline RowScale row_scale(uint32_t magnitude, float static_scale) {
    if (magnitude >= NOT_FINITE) return {float_of_bits(0x7fc00000), 0.0f};
    if (static_scale != 0.0f) return {static_scale, 1.0f / static_scale};
    const float maximum = float_of_bits(magnitude);
    if (maximum < SMALLEST_MAXIMUM) return {0.0f, 0.0f};
    return {maximum / 127.0f, 127.0f / maximum};
}

// The rows of a tile share cache lines: they advance together, by chunks of k.
constexpr int64_t CHUNK = 256;

// A chunk of one row, its place in the tile being `place`.
template <class Row>
void quantize_chunk(const codesign_int8_job *job, Row row, RowScale found, Tile tile, int64_t place, int64_t begin,
                    int64_t length) {
    const int64_t stride = tile.rows * 4, group = begin / job->group;
    int8_t *codes = job->codes + tile.row * job->k + place * 4 + begin / 4 * stride;
    alignas(64) int8_t chunk[CHUNK] = {};
    int32_t sum = 0;
    // Of a row that is not finite nothing may be converted to an integer.
    if (found.inverse != 0.0f) sum = quantize_values(row, begin, length, found.inverse, chunk);
    for (int64_t i = 0; i < length; i += 4, codes += stride) memcpy(codes, chunk + i, 4);
    job->sums[tile.row * job->groups + group * tile.rows + place] += sum * job->sum_factor;
}

template <class Row, int TILE_ROWS> void quantize_tile(const codesign_int8_job *job, Tile tile) {
    const auto row_at = [&](int64_t place) {
        return Row{(decltype(Row::values))job->x + (tile.row + place) * job->k};
    };
    RowScale scales[TILE_ROWS];
    for (int64_t place = 0; place < tile.rows; place++) {
        scales[place] = row_scale(largest_magnitude(row_at(place), job->k), job->static_scale);
        job->row_scales[tile.row + place] = scales[place].scale;
    }
    memset(job->sums + tile.row * job->groups, 0, size_t(tile.rows * job->groups) * sizeof(int32_t));
    const int64_t length = job->group < CHUNK ? job->group : CHUNK; // never longer than a group
    for (int64_t begin = 0; begin < job->k; begin += length) {
        const int64_t left = job->k - begin, now = left < length ? left : length;
        for (int64_t place = 0; place < tile.rows; place++)
            quantize_chunk(job, row_at(place), scales[place], tile, place, begin, now);
    }
}

template <int TILE_ROWS> void quantize(const codesign_int8_job *job, int64_t tile_begin, int64_t tile_end) {
    const int64_t tiles = tile_count(job->m, TILE_ROWS);
    for (int64_t index = tile_begin; index < tile_end; index++) {
        const Tile tile = tile_at(job->m, tiles, index);
        if (job->x_dtype == CODESIGN_FLOAT32) quantize_tile<FloatRow, TILE_ROWS>(job, tile);
        else quantize_tile<Bf16Row, TILE_ROWS>(job, tile);
    }
}

// out = sum x row scale x column factor, for the columns of a panel that exist.
inline void write_row(const codesign_int8_job *job, int64_t row, int64_t column, const float *sums, const float *factors) {
    const int64_t left = job->n - column;
    const int64_t columns = left < CODESIGN_INT8_COLUMNS ? left : CODESIGN_INT8_COLUMNS;
    const float scale = job->row_scales[row];
    float values[CODESIGN_INT8_COLUMNS];
    for (int64_t i = 0; i < CODESIGN_INT8_COLUMNS; i++) values[i] = sums[i] * (scale * factors[i]);
    if (job->out_dtype == CODESIGN_FLOAT32) {
        float *out = (float *)job->out + row * job->n + column;
        if (columns == CODESIGN_INT8_COLUMNS) memcpy(out, values, sizeof values);
        else memcpy(out, values, size_t(columns) * sizeof(float));
        return;
    }
    uint16_t rounded[CODESIGN_INT8_COLUMNS];
    for (int64_t i = 0; i < CODESIGN_INT8_COLUMNS; i++) rounded[i] = bf16_of_float(values[i]);
    memcpy((uint16_t *)job->out + row * job->n + column, rounded, size_t(columns) * sizeof(uint16_t));
}

// Packed bytes that stay in a second-level cache beside a tile of activations.
constexpr int64_t CACHED_BYTES = 256 << 10;

// Product: the type with TILE_ROWS and run(job, tile, panel, ahead, out): out is [rows][32] floats; the same place `ahead`
// bytes further is needed next, 0: nothing is known.
template <class Product> void multiply(const codesign_int8_job *job, int64_t panel_begin, int64_t panel_end) {
    alignas(64) float sums[Product::TILE_ROWS * CODESIGN_INT8_COLUMNS];
    const int64_t tiles = tile_count(job->m, Product::TILE_ROWS);
    const int64_t fitting = CACHED_BYTES / job->panel_bytes, together = fitting ? fitting : 1;
    for (int64_t first = panel_begin; first < panel_end; first += together) {
        const int64_t end = first + together < panel_end ? first + together : panel_end;
        for (int64_t index = 0; index < tiles; index++) {
            const Tile tile = tile_at(job->m, tiles, index);
            // One tile alone waits for memory, which serves plain reads best; the last of many has time to fetch.
            const int64_t ahead = tiles > 1 && index == tiles - 1 ? together * job->panel_bytes : 0;
            for (int64_t panel = first; panel < end; panel++) {
                const uint8_t *packed = job->packed + panel * job->panel_bytes;
                Product::run(job, tile, packed + CODESIGN_INT8_FACTOR_BYTES, ahead, sums);
                for (int64_t row = 0; row < tile.rows; row++)
                    write_row(job, tile.row + row, panel * CODESIGN_INT8_COLUMNS, sums + row * CODESIGN_INT8_COLUMNS,
                              (const float *)packed);
            }
        }
    }
}

// Calls Body<rows>::run(arguments...) for the number of rows at run time.
template <template <int> class Body, int ROWS> struct Rows {
    template <class... Arguments> static void run(int64_t rows, Arguments... arguments) {
        if (rows == ROWS) Body<ROWS>::run(arguments...);
        else Rows<Body, ROWS - 1>::run(rows, arguments...);
    }
};

template <template <int> class Body> struct Rows<Body, 0> {
    template <class... Arguments> static void run(int64_t, Arguments...) {}
};

} // namespace
