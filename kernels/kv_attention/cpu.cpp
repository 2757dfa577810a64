// The C interface: shapes, threads, and what joins the parts that threads computed.
#include "kv_attention.h"

#include "append.h"
#include "piece.h"

#include "common/pool.h"
#include "common/variants.h"

#include <vector>

using namespace codesign::kv;

CODESIGN_VARIANTS(Variant, kv_attention)

namespace {

bool valid(const codesign_kv_shape &s) {
    return s.format >= 0 && s.format < CODESIGN_KV_FORMATS && s.batch >= 1 && s.kv_heads >= 1 && s.heads >= 1 &&
           s.heads % s.kv_heads == 0 && s.head_dim >= 16 && s.head_dim % 16 == 0 && s.head_dim <= LONGEST_HEAD &&
           s.q_tokens >= 1 && s.capacity >= 1;
}

bool lengths_fit(const codesign_kv_shape &s, const int64_t *lengths, int64_t least, int64_t more) {
    for (int32_t b = 0; b < s.batch; b++)
        if (lengths[b] < least || lengths[b] + more > s.capacity) return false;
    return true;
}

int64_t blocks_of(int64_t tokens) { return (tokens + BLOCK - 1) / BLOCK; }
int64_t rows_of(const codesign_kv_shape &s) { return int64_t(s.heads / s.kv_heads) * s.q_tokens; }
int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t sequence_bytes(const codesign_kv_shape &s) {
    return blocks_of(s.capacity) * block_bytes(s.format, s.head_dim);
}

float read_number(const void *x, int32_t dtype, int64_t at) {
    return dtype == CODESIGN_KV_FLOAT32 ? ((const float *)x)[at] : float_of_bf16(((const uint16_t *)x)[at]);
}

void write_number(void *x, int32_t dtype, int64_t at, float value) {
    if (dtype == CODESIGN_KV_FLOAT32) ((float *)x)[at] = value;
    else ((uint16_t *)x)[at] = bf16_of_float(value);
}

// ---- running: all blocks of all sequences form one line that the threads cut into equal lengths. A sequence that a
// cut goes through has several partial results; each thread can have two of them, its first sequence and its last.

struct Partial {
    int64_t sequence = -1; // batch · kv_heads + kv_head
    float *maximum = nullptr, *sum = nullptr, *out = nullptr;
};

struct Run {
    const codesign_kv_shape &shape;
    const Variant *variant;
    const void *q;
    const uint8_t *cache;
    const int64_t *lengths;
    void *out;
    int32_t dtype;
    float scale;
    uint8_t *workspace;
    std::vector<Partial> *partials; // two per thread
};

int64_t partial_bytes(const codesign_kv_shape &s) {
    return whole_lines(rows_of(s) * (2 + s.head_dim) * int64_t(sizeof(float)));
}

int64_t queries_bytes(const codesign_kv_shape &s) {
    return (rows_of(s) + ROWS - 1) / ROWS * int64_t(sizeof(Queries));
}

// Per thread: weights, queries in both forms, three results (first sequence, last, those in between).
int64_t thread_bytes(const codesign_kv_shape &s) {
    const int64_t q = whole_lines(rows_of(s) * s.head_dim * int64_t(sizeof(float)));
    return int64_t(sizeof(Weights)) + queries_bytes(s) + q + 3 * partial_bytes(s);
}

Partial partial_at(const codesign_kv_shape &s, uint8_t *own, int64_t slot, int64_t sequence) {
    float *begin = (float *)(own + thread_bytes(s) - (slot + 1) * partial_bytes(s));
    const int64_t rows = rows_of(s);
    return {sequence, begin, begin + rows, begin + 2 * rows};
}

// Copies the queries of a sequence's KV head: they lie one behind the other.
void scaled_queries(const Run &run, int64_t sequence, float *to) {
    const int64_t count = rows_of(run.shape) * run.shape.head_dim;
    const float scale = run.scale * 1.44269504f; // to exponents of two
    for (int64_t i = 0; i < count; i++) to[i] = read_number(run.q, run.dtype, sequence * count + i) * scale;
}

void attend(const Run &run, uint8_t *own, const Partial &to, int64_t first, int64_t last) {
    const codesign_kv_shape &s = run.shape;
    Weights *weights = (Weights *)own;
    Queries *queries = (Queries *)(own + sizeof(Weights));
    float *q = (float *)(own + sizeof(Weights) + queries_bytes(s));
    scaled_queries(run, to.sequence, q);
    run.variant->attend[s.format]({s.head_dim, int32_t(rows_of(s)), run.cache + to.sequence * sequence_bytes(s), first,
                                   last, q, queries, weights, to.maximum, to.sum, to.out});
}

// Writes the result of a sequence from its parts.
void finish(const Run &run, const Partial *parts, int64_t count) {
    const int64_t rows = rows_of(run.shape), head_dim = run.shape.head_dim;
    for (int64_t row = 0; row < rows; row++) {
        float maximum = parts[0].maximum[row], sum = 0;
        for (int64_t i = 1; i < count; i++) maximum = std::max(maximum, parts[i].maximum[row]);
        for (int64_t i = 0; i < count; i++) sum += parts[i].sum[row] * std::exp2(parts[i].maximum[row] - maximum);
        for (int64_t d = 0; d < head_dim; d++) {
            float value = 0;
            for (int64_t i = 0; i < count; i++)
                value += parts[i].out[row * head_dim + d] * std::exp2(parts[i].maximum[row] - maximum);
            write_number(run.out, run.dtype, (parts[0].sequence * rows + row) * head_dim + d, value / sum);
        }
    }
}

// One thread's share [begin, end) of the line of blocks.
void share(const Run &run, int32_t thread, int64_t begin, int64_t end) {
    const codesign_kv_shape &s = run.shape;
    uint8_t *own = run.workspace + thread * thread_bytes(s);
    int64_t at = 0; // where the sequence begins on the line
    for (int64_t sequence = 0; sequence < int64_t(s.batch) * s.kv_heads && at < end; sequence++) {
        const int64_t tokens = run.lengths[sequence / s.kv_heads], blocks = blocks_of(tokens);
        const int64_t first = std::max(begin - at, int64_t(0)), last = std::min(end - at, blocks);
        at += blocks;
        if (first >= last) continue;
        const bool begins = first == 0, ends = last == blocks;
        const int64_t slot = begins && ends ? 2 : begins ? 1 : 0;
        const Partial to = partial_at(s, own, slot, sequence);
        attend(run, own, to, first * BLOCK, std::min(last * BLOCK, tokens));
        if (slot == 2) finish(run, &to, 1);
        else (*run.partials)[size_t(2 * thread + slot)] = to;
    }
}

void task(void *context, int32_t thread, int32_t threads) {
    const Run &run = *(const Run *)context;
    int64_t blocks = 0;
    for (int32_t b = 0; b < run.shape.batch; b++) blocks += blocks_of(run.lengths[b]) * run.shape.kv_heads;
    share(run, thread, blocks * thread / threads, blocks * (thread + 1) / threads);
}

void merge(const Run &run) {
    std::vector<Partial> parts;
    for (const Partial &one : *run.partials)
        if (one.sequence >= 0) parts.push_back(one);
    for (size_t i = 0, j; i < parts.size(); i = j) {
        for (j = i; j < parts.size() && parts[j].sequence == parts[i].sequence;) j++;
        finish(run, &parts[i], int64_t(j - i));
    }
}

} // namespace

int64_t codesign_kv_attention_cache_bytes(const codesign_kv_shape *shape) {
    return valid(*shape) ? int64_t(shape->batch) * shape->kv_heads * sequence_bytes(*shape) : 0;
}

int64_t codesign_kv_attention_workspace_bytes(const codesign_kv_shape *shape, int32_t threads) {
    return valid(*shape) && threads >= 1 ? threads * thread_bytes(*shape) : 0;
}

int32_t codesign_kv_attention_append(const codesign_kv_shape *shape, const void *k, const void *v, int32_t dtype,
                                     int64_t tokens, const int64_t *lengths, void *cache) {
    const codesign_kv_shape &s = *shape;
    if (!valid(s) || tokens < 0 || !lengths_fit(s, lengths, 0, tokens)) return CODESIGN_KV_BAD_SHAPE;
    float key[LONGEST_HEAD], value[LONGEST_HEAD];
    for (int64_t row = 0; row < int64_t(s.batch) * s.kv_heads * tokens; row++) {
        const int64_t sequence = row / tokens, token = lengths[sequence / s.kv_heads] + row % tokens;
        for (int64_t d = 0; d < s.head_dim; d++) {
            key[d] = read_number(k, dtype, row * s.head_dim + d);
            value[d] = read_number(v, dtype, row * s.head_dim + d);
        }
        const int64_t half = half_block(s.format, s.head_dim);
        uint8_t *block = (uint8_t *)cache + sequence * sequence_bytes(s) +
                         token / BLOCK * block_bytes(s.format, s.head_dim);
        uint8_t *keys = block + scale_bytes(s.format);
        const Target to{(uint16_t *)block, (uint16_t *)block + BLOCK, keys, keys + half};
        PUTS[s.format](s.format, key, value, s.head_dim, token % BLOCK, to);
    }
    return CODESIGN_KV_OK;
}

int32_t codesign_kv_attention_run(int32_t isa, const codesign_kv_shape *shape, const void *q, const void *cache,
                                  const int64_t *lengths, void *out, int32_t dtype, float scale, int32_t threads,
                                  void *workspace) {
    if (!valid(*shape) || threads < 1 || !lengths_fit(*shape, lengths, 1, 0)) return CODESIGN_KV_BAD_SHAPE;
    const Variant *chosen = variant_of(VARIANTS, isa);
    if (!chosen) return CODESIGN_KV_BAD_VARIANT;
    std::vector<Partial> partials(size_t(2 * threads));
    Run run{*shape, chosen, q, (const uint8_t *)cache, lengths, out, dtype, scale, (uint8_t *)workspace, &partials};
    codesign_parallel(threads, task, &run);
    merge(run);
    return CODESIGN_KV_OK;
}
