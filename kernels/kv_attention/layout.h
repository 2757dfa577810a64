// Where a number lies in the cache. One block: 64 tokens of one KV head: (integers) scales, keys, values, in the order
// in which attention reads them. The loops over keys and over values each read one ascending stream, 128 bytes a step,
// which the hardware prefetches; it did not prefetch two streams 2 KiB apart.
//
//   scales bf16        [2][64]                                 of keys, of values
//   keys   fp16, bf16  [2][head_dim][32 tokens]
//          int8        [2][head_dim / 4][32 tokens][4 dims]    code + 128
//          int4        [2][head_dim / 8][32 tokens][4 bytes]   code + 8; byte i: dimension i low, i + 4 high
//   values fp16, bf16  [head_dim / 32][64 tokens][32 dims]     the last group has 16 dimensions if 16 are left
//          int8        [head_dim / 32][16][32 dims][4 tokens]  two's complement
//          int4        [head_dim / 32][8][32 dims][4 bytes]    two's complement; byte i: token i low, i + 4 high
#pragma once

#include "kv_attention.h"

namespace codesign::kv {

constexpr int64_t BLOCK = 64;
constexpr int64_t LONGEST_HEAD = 256;

constexpr bool is_integer(int32_t format) { return format == CODESIGN_KV_INT8 || format == CODESIGN_KV_INT4; }

constexpr int64_t bits(int32_t format) {
    return format == CODESIGN_KV_INT4 ? 4 : format == CODESIGN_KV_INT8 ? 8 : 16;
}

// Bytes of the keys of a block, and of its values.
constexpr int64_t half_block(int32_t format, int64_t head_dim) { return BLOCK * head_dim * bits(format) / 8; }

constexpr int64_t scale_bytes(int32_t format) { return is_integer(format) ? 2 * BLOCK * 2 : 0; }

constexpr int64_t block_bytes(int32_t format, int64_t head_dim) {
    return scale_bytes(format) + 2 * half_block(format, head_dim);
}

// Position of a key within its block: in units of two bytes, bytes, and half bytes (bit 0: the high half).
constexpr int64_t key_half(int64_t head_dim, int64_t token, int64_t d) {
    return (token / 32 * head_dim + d) * 32 + token % 32;
}
constexpr int64_t key_byte(int64_t head_dim, int64_t token, int64_t d) {
    return ((token / 32 * (head_dim / 4) + d / 4) * 32 + token % 32) * 4 + d % 4;
}
constexpr int64_t key_nibble(int64_t head_dim, int64_t token, int64_t d) {
    return (((token / 32 * (head_dim / 8) + d / 8) * 32 + token % 32) * 4 + d % 4) * 2 + d / 4 % 2;
}

// Values lie in groups of 32 dimensions; the last may have 16. `steps` of them hold all tokens of a block.
constexpr int64_t group_width(int64_t head_dim, int64_t d) { return head_dim - d / 32 * 32 < 32 ? 16 : 32; }
constexpr int64_t in_group(int64_t head_dim, int64_t d, int64_t steps, int64_t step) {
    return d / 32 * 32 * steps + step * group_width(head_dim, d) + d % 32;
}
constexpr int64_t value_half(int64_t head_dim, int64_t token, int64_t d) { return in_group(head_dim, d, BLOCK, token); }
constexpr int64_t value_byte(int64_t head_dim, int64_t token, int64_t d) {
    return in_group(head_dim, d, BLOCK / 4, token / 4) * 4 + token % 4;
}
constexpr int64_t value_nibble(int64_t head_dim, int64_t token, int64_t d) {
    return (in_group(head_dim, d, BLOCK / 8, token / 8) * 4 + token % 4) * 2 + token / 4 % 2;
}

} // namespace codesign::kv
