// Rounding new tokens into the cache.
#pragma once

#include "layout.h"

#include "common/float_bits.h"

#include <algorithm>
#include <cmath>

namespace codesign::kv {
namespace {

// The keys and values of one block, as the layout names their parts.
struct Target {
    uint16_t *key_scales, *value_scales;
    uint8_t *keys, *values;
};

// The smallest bfloat16 that is not below.
inline uint16_t bf16_above(float x) {
    const uint32_t bits = bits_of_float(x);
    return uint16_t((bits + 0xffff) >> 16);
}

inline uint16_t finite_half(float x) { return half_of_float(std::clamp(x, -65504.0f, 65504.0f)); }

// Half bytes are written one at a time: the other half belongs to another token or dimension.
inline void put_nibble(uint8_t *to, int64_t at, int32_t code) {
    uint8_t &byte = to[at / 2];
    byte = at % 2 ? uint8_t((byte & 15) | code << 4) : uint8_t((byte & 240) | code);
}

struct Rounded {
    int8_t codes[LONGEST_HEAD];
    uint16_t scale;
};

Rounded round_row(const float *x, int64_t head_dim, int32_t limit) {
    float largest = 0;
    for (int64_t d = 0; d < head_dim; d++) largest = std::max(largest, std::fabs(x[d]));
    Rounded to;
    to.scale = bf16_above(largest / float(limit));
    const float scale = float_of_bf16(to.scale);
    const float inverse = scale > 1e-37f ? 1 / scale : 0;
    for (int64_t d = 0; d < head_dim; d++)
        to.codes[d] = int8_t(std::clamp(int32_t(std::lrintf(x[d] * inverse)), -limit, limit));
    return to;
}

void put_half(int32_t format, const float *k, const float *v, int64_t head_dim, int64_t token, const Target &to) {
    uint16_t (*const half)(float) = format == CODESIGN_KV_FP16 ? finite_half : bf16_of_float;
    for (int64_t d = 0; d < head_dim; d++) {
        ((uint16_t *)to.keys)[key_half(head_dim, token, d)] = half(k[d]);
        ((uint16_t *)to.values)[value_half(head_dim, token, d)] = half(v[d]);
    }
}

void put_byte(int32_t, const float *k, const float *v, int64_t head_dim, int64_t token, const Target &to) {
    const Rounded key = round_row(k, head_dim, 127), value = round_row(v, head_dim, 127);
    for (int64_t d = 0; d < head_dim; d++) {
        to.keys[key_byte(head_dim, token, d)] = uint8_t(key.codes[d] + 128);
        to.values[value_byte(head_dim, token, d)] = uint8_t(value.codes[d]);
    }
    to.key_scales[token] = key.scale;
    to.value_scales[token] = value.scale;
}

void put_half_bytes(int32_t, const float *k, const float *v, int64_t head_dim, int64_t token, const Target &to) {
    const Rounded key = round_row(k, head_dim, 7), value = round_row(v, head_dim, 7);
    for (int64_t d = 0; d < head_dim; d++) {
        put_nibble(to.keys, key_nibble(head_dim, token, d), key.codes[d] + 8);
        put_nibble(to.values, value_nibble(head_dim, token, d), value.codes[d] & 15);
    }
    to.key_scales[token] = key.scale;
    to.value_scales[token] = value.scale;
}

using Put = void (*)(int32_t format, const float *k, const float *v, int64_t head_dim, int64_t token, const Target &to);
constexpr Put PUTS[CODESIGN_KV_FORMATS] = {put_half, put_half, put_byte, put_half_bytes};

} // namespace
} // namespace codesign::kv
