// Attention of a few new queries over a cache of keys and values in 16, 8 or 4 bits. Plain C.
//
// The cache holds `capacity` tokens of each of batch · kv_heads sequences, in blocks of 64 tokens (layout.h). Keys and
// values of one token and head share one scale each (bfloat16, rounded up); integers are symmetric: int8 -127..127,
// int4 -7..7. `lengths` are the tokens already in the cache, one per batch entry; blocks are filled token by token.
// Arrays are dense: k, v [batch][kv_heads][tokens][head_dim]; q, out [batch][heads][q_tokens][head_dim]. Head h reads
// the KV head h / (heads / kv_heads). There is no mask: every query sees all `lengths` tokens.
#pragma once

#include <cstdint>

enum codesign_kv_format : int32_t {
    CODESIGN_KV_FP16 = 0,
    CODESIGN_KV_BF16 = 1,
    CODESIGN_KV_INT8 = 2,
    CODESIGN_KV_INT4 = 3,
    CODESIGN_KV_FORMATS = 4,
};

enum codesign_kv_dtype : int32_t { CODESIGN_KV_FLOAT32 = 0, CODESIGN_KV_BFLOAT16 = 1 };

enum codesign_kv_status : int32_t {
    CODESIGN_KV_OK = 0,
    CODESIGN_KV_BAD_SHAPE = 1,   // a shape that is refused (see below), or a length outside of the cache
    CODESIGN_KV_BAD_VARIANT = 2, // this processor does not run the variant
};

extern "C" {
typedef struct {
    int32_t format, batch, heads, kv_heads;
    int32_t head_dim; // a multiple of 16, at most 256
    int32_t q_tokens;
    int64_t capacity; // tokens
} codesign_kv_shape;

// Bytes of the whole cache, 0 for a shape that is refused. Memory must be aligned to 64 bytes and may hold anything.
int64_t codesign_kv_attention_cache_bytes(const codesign_kv_shape *shape);
// Bytes that codesign_kv_attention_run needs beside it (aligned to 64), 0 for a shape that is refused.
int64_t codesign_kv_attention_workspace_bytes(const codesign_kv_shape *shape, int32_t threads);
// Rounds and writes `tokens` more tokens behind the first lengths[b] of every sequence b.
int32_t codesign_kv_attention_append(const codesign_kv_shape *shape, const void *k, const void *v, int32_t dtype,
                                     int64_t tokens, const int64_t *lengths, void *cache);
// out = softmax(scale · q · kᵀ) · v over the first lengths[b] >= 1 tokens. `isa` -1 is the best variant here.
int32_t codesign_kv_attention_run(int32_t isa, const codesign_kv_shape *shape, const void *q, const void *cache,
                                  const int64_t *lengths, void *out, int32_t dtype, float scale, int32_t threads,
                                  void *workspace);
}
