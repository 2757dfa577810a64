// What one thread does at a time: the query rows of one KV head over a range of its blocks.
#pragma once

#include "layout.h"

namespace codesign::kv {

constexpr int ROWS = 4; // query rows that share a load of the cache

// Up to ROWS queries as the kernels read them. Integers: q = (128 · part 0 + part 1) · scale.
struct Queries {
    alignas(64) int8_t parts[ROWS][2][LONGEST_HEAD];
    alignas(64) float values[ROWS][LONGEST_HEAD];
    float scale[ROWS];
    int32_t sum[ROWS];                // of the integers
    alignas(64) float sums[ROWS][16]; // of the probabilities so far, in each lane
};

// One block's probabilities of ROWS queries, as floats and as integers (128 · part 0 + part 1) · scale.
struct Weights {
    alignas(64) float scores[ROWS][BLOCK]; // exponents of two, then probabilities
    alignas(64) int8_t parts[ROWS][2][BLOCK];
    alignas(64) float key_scale[BLOCK];
    alignas(64) float value_scale[BLOCK];
    float scale[ROWS];
};

struct Piece {
    int32_t head_dim, rows;
    const uint8_t *blocks; // of the KV head
    int64_t first, last;   // tokens; `first` begins a block
    const float *q;        // [rows][head_dim], times softmax scale and log2(e)
    Queries *queries;      // room for ceil(rows / ROWS)
    Weights *weights;      // room for one
    float *maximum, *sum;  // [rows] of the result: exponents are taken from the maximum
    float *out;            // [rows][head_dim], not divided by the sum
};

// The functions of one variant, by codesign_kv_format.
struct Variant {
    void (*attend[CODESIGN_KV_FORMATS])(const Piece &piece);
};

} // namespace codesign::kv
