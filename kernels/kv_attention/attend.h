// The kernels, written once for all instruction sets: `S` names the registers and operations (simd_*.h), `H` is the
// number of query rows that share each load of the cache, `FORMAT` what the cache holds.
#pragma once

#include "piece.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace codesign::kv {
namespace {

constexpr float LOWEST = -1e30f; // an exponent that stands for "no token"
constexpr float SLACK = 8;        // in powers of two
constexpr float LARGEST = 16383; // of the integers in two parts of seven bits

struct Block {
    const uint16_t *scales; // of keys, of values
    const uint8_t *keys, *values;
    int64_t tokens;
};

template <int FORMAT> Block block_at(const Piece &p, int64_t token) {
    const int64_t half = half_block(FORMAT, p.head_dim);
    const uint8_t *begin = p.blocks + token / BLOCK * block_bytes(FORMAT, p.head_dim);
    const uint8_t *keys = begin + scale_bytes(FORMAT);
    return {(const uint16_t *)begin, keys, keys + half, std::min(BLOCK, p.last - token)};
}

// ---- queries

inline void split_query(const float *q, int64_t head_dim, Queries *to, int row) {
    float largest = 0;
    for (int64_t d = 0; d < head_dim; d++) largest = std::max(largest, std::fabs(q[d]));
    const float inverse = largest > 0 ? 16256 / largest : 0; // 127 · 128: part 0 stays below 128
    int32_t sum = 0;
    for (int64_t d = 0; d < head_dim; d++) {
        const int32_t whole = int32_t(std::lrintf(q[d] * inverse));
        const int32_t high = (whole + 64) >> 7;
        to->parts[row][0][d] = int8_t(high);
        to->parts[row][1][d] = int8_t(whole - high * 128);
        sum += whole;
    }
    to->scale[row] = largest / 16256;
    to->sum[row] = sum;
}

template <int FORMAT> void prepare(const Piece &p) {
    for (int row = 0; row < p.rows; row++) {
        Queries *to = p.queries + row / ROWS;
        std::fill(to->sums[row % ROWS], to->sums[row % ROWS] + 16, 0.0f);
        const float *q = p.q + int64_t(row) * p.head_dim;
        if constexpr (is_integer(FORMAT)) split_query(q, p.head_dim, to, row % ROWS);
        else memcpy(to->values[row % ROWS], q, size_t(p.head_dim) * sizeof(float));
    }
}

// ---- scores = q · kᵀ, for tokens in lanes

template <class S, int FORMAT> typename S::F load_half(const uint16_t *p) {
    if constexpr (FORMAT == CODESIGN_KV_FP16) return S::fp16(p);
    else return S::bf16(p);
}

// The codes of a line as the dot product takes them: keys offset to be unsigned, values signed (int4: times 16).
template <class S, int FORMAT, bool VALUES>
inline void unpack(const uint8_t *line, typename S::B &first, typename S::B &second) {
    if constexpr (FORMAT == CODESIGN_KV_INT8) first = VALUES ? S::raw(line) : S::bytes(line);
    else {
        const auto both = S::raw(line);
        first = VALUES ? S::signed_low(both) : S::low(both);
        second = VALUES ? S::signed_high(both) : S::high(both);
    }
}

template <class S, bool VALUES> typename S::I dot(typename S::I acc, typename S::B codes, typename S::Q four) {
    if constexpr (VALUES) return S::dot_signed(acc, codes, four);
    else return S::dot(acc, codes, four);
}

// acc[h][part][v] += codes · parts for the four (int4: eight) numbers in each lane of a line.
template <class S, int FORMAT, bool VALUES, int H, int V, int64_t STRIDE = VALUES ? BLOCK : LONGEST_HEAD>
inline void dot_line(typename S::I (&acc)[H][2][V], const uint8_t *line, const int8_t *parts) {
    typename S::B first[V], second[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) unpack<S, FORMAT, VALUES>(line + v * S::LANES * 4, first[v], second[v]);
#pragma GCC unroll 4
    for (int h = 0; h < H; h++)
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) {
            const int8_t *four = parts + (h * 2 + part) * STRIDE;
            const typename S::Q one = S::quad(four);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[h][part][v] = dot<S, VALUES>(acc[h][part][v], first[v], one);
            if constexpr (FORMAT == CODESIGN_KV_INT4) {
                const typename S::Q two = S::quad(four + 4);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[h][part][v] = dot<S, VALUES>(acc[h][part][v], second[v], two);
            }
        }
}

template <class S, int FORMAT, int H>
void scores_of_integers(const Piece &p, const Block &b, const Queries &q) {
    constexpr int V = S::VECTORS;
    constexpr int DIMS = FORMAT == CODESIGN_KV_INT4 ? 8 : 4;
    const int64_t steps = p.head_dim / DIMS;
    Weights *w = p.weights;
    for (int64_t token = 0; token < b.tokens; token += S::LANES * V) {
        typename S::I acc[H][2][V];
#pragma GCC unroll 4
        for (auto &of_row : acc)
#pragma GCC unroll 4
            for (auto &of_part : of_row)
#pragma GCC unroll 4
                for (auto &one : of_part) one = S::integers();
        const uint8_t *line = b.keys + token / 32 * steps * 128 + token % 32 * 4;
        for (int64_t j = 0; j < steps; j++, line += 128) {
            dot_line<S, FORMAT, false, H, V>(acc, line, q.parts[0][0] + j * DIMS);
        }
#pragma GCC unroll 4
        for (int h = 0; h < H; h++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const int64_t at = token + v * S::LANES;
                const int32_t zero = FORMAT == CODESIGN_KV_INT4 ? 8 : S::BYTE_ZERO;
                const auto whole = S::combine(acc[h][0][v], acc[h][1][v], zero * q.sum[h]);
                const auto scale = S::mul(S::set(q.scale[h]), S::load(w->key_scale + at));
                S::store(w->scores[h] + at, S::mul(S::number(whole), scale));
            }
    }
}

template <class S, int FORMAT, int H>
void scores_of_floats(const Piece &p, const Block &b, const Queries &q) {
    constexpr int V = S::FLOAT_VECTORS;
    for (int64_t token = 0; token < b.tokens; token += S::LANES * V) {
        typename S::F acc[H][V];
#pragma GCC unroll 4
        for (auto &of_row : acc)
#pragma GCC unroll 4
            for (auto &one : of_row) one = S::set(0);
        const uint16_t *keys = (const uint16_t *)b.keys + key_half(p.head_dim, token, 0);
        for (int64_t d = 0; d < p.head_dim; d++, keys += 32) {
            typename S::F k[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) k[v] = load_half<S, FORMAT>(keys + v * S::LANES);
#pragma GCC unroll 4
            for (int h = 0; h < H; h++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[h][v] = S::fma(k[v], S::set(q.values[h][d]), acc[h][v]);
        }
#pragma GCC unroll 4
        for (int h = 0; h < H; h++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) S::store(p.weights->scores[h] + token + v * S::LANES, acc[h][v]);
    }
}

// ---- probabilities

// 2^x to a relative 3e-6: a polynomial for the fraction in -1/2..1/2, fitted to the least largest error.
template <class S> typename S::F exp2_of(typename S::F x) {
    const auto n = S::nearest(x);
    const auto r = S::sub(x, n);
    auto y = S::fma(r, S::set(0.00957010107f), S::set(0.0559178603f));
    y = S::fma(y, r, S::set(0.240247448f));
    y = S::fma(y, r, S::set(0.693121815f));
    return S::shifted(S::fma(y, r, S::set(0.999999261f)), n);
}

// Makes the row's largest score the one that exponents are taken from, and scales what was summed so far to it.
template <class S> void raise_maximum(const Piece &p, Queries *q, int row, int64_t at, float higher) {
    const float factor = std::exp2(std::max(p.maximum[at] - higher, -126.0f));
    p.maximum[at] = higher;
    for (int i = 0; i < S::LANES; i++) q->sums[row][i] *= factor;
    for (int64_t d = 0; d < p.head_dim; d++) p.out[at * p.head_dim + d] *= factor;
}

// Scores become probabilities, up to SLACK above 1 rather than at most 1: so the maximum is seldom raised. Returns,
// for integers, the largest probability times the value's scale in each lane.
template <class S, int FORMAT>
typename S::F probabilities(const Piece &p, const Block &b, Queries *q, int row, int64_t at) {
    constexpr int N = int(BLOCK / S::LANES);
    float *scores = p.weights->scores[row];
    for (int64_t t = b.tokens; t < BLOCK; t++) scores[t] = LOWEST;
    auto top = S::load(scores);
    for (int i = 1; i < N; i++) top = S::max(top, S::load(scores + i * S::LANES));
    if (S::exceeds(top, p.maximum[at] + SLACK)) raise_maximum<S>(p, q, row, at, S::highest(top));
    const auto maximum = S::set(p.maximum[at]);
    auto sum = S::load(q->sums[row]);
    top = S::set(0);
    for (int i = 0; i < N; i++) {
        auto x = exp2_of<S>(S::sub(S::load(scores + i * S::LANES), maximum));
        sum = S::add(sum, x);
        if constexpr (is_integer(FORMAT)) {
            x = S::mul(x, S::load(p.weights->value_scale + i * S::LANES));
            top = S::max(top, x);
        }
        S::store(scores + i * S::LANES, x);
    }
    S::store(q->sums[row], sum);
    return top;
}

template <class S, int FORMAT, int H> void softmax(const Piece &p, const Block &b, int64_t first_row) {
    Queries *q = p.queries + first_row / ROWS;
    Weights *w = p.weights;
    typename S::F top[H];
#pragma GCC unroll 4
    for (int h = 0; h < H; h++) top[h] = probabilities<S, FORMAT>(p, b, q, h, first_row + h);
    if constexpr (is_integer(FORMAT))
#pragma GCC unroll 4
        for (int h = 0; h < H; h++) {
            const float largest = S::highest(top[h]);
            w->scale[h] = largest / (FORMAT == CODESIGN_KV_INT4 ? 16 * LARGEST : LARGEST);
            S::split(w->scores[h], largest > 1e-30f ? LARGEST / largest : 0, w->parts[h][0], w->parts[h][1]);
        }
}

// ---- out = probabilities · v, for dimensions in lanes

template <class S, int FORMAT, int H, int V>
void values_of_integers(const Piece &p, const Block &b, float *out, int64_t d) {
    constexpr int TOKENS = FORMAT == CODESIGN_KV_INT4 ? 8 : 4;
    const Weights *w = p.weights;
    typename S::I acc[H][2][V];
#pragma GCC unroll 4
    for (auto &of_row : acc)
#pragma GCC unroll 4
        for (auto &of_part : of_row)
#pragma GCC unroll 4
            for (auto &one : of_part) one = S::integers();
    const uint8_t *line = b.values + in_group(p.head_dim, d, BLOCK / TOKENS, 0) * 4;
    const int64_t width = group_width(p.head_dim, d) * 4;
    for (int64_t token = 0; token < b.tokens; token += TOKENS, line += width) {
        dot_line<S, FORMAT, true, H, V>(acc, line, w->parts[0][0] + token);
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; h++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            float *to = out + h * p.head_dim + d + v * S::LANES;
            const auto whole = S::combine(acc[h][0][v], acc[h][1][v], 0);
            S::store(to, S::fma(S::number(whole), S::set(w->scale[h]), S::load(to)));
        }
}

template <class S, int FORMAT, int H, int V>
void values_of_floats(const Piece &p, const Block &b, float *out, int64_t d) {
    const Weights *w = p.weights;
    typename S::F acc[H][V];
#pragma GCC unroll 4
    for (int h = 0; h < H; h++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            acc[h][v] = S::load(out + h * p.head_dim + d + v * S::LANES);
    const uint16_t *values = (const uint16_t *)b.values + value_half(p.head_dim, 0, d);
    const int64_t width = group_width(p.head_dim, d);
    for (int64_t token = 0; token < b.tokens; token++, values += width) {
        typename S::F x[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) x[v] = load_half<S, FORMAT>(values + v * S::LANES);
#pragma GCC unroll 4
        for (int h = 0; h < H; h++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[h][v] = S::fma(x[v], S::set(w->scores[h][token]), acc[h][v]);
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; h++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) S::store(out + h * p.head_dim + d + v * S::LANES, acc[h][v]);
}

template <class S, int FORMAT, int H, int V>
void values_of(const Piece &p, const Block &b, float *out, int64_t d) {
    if constexpr (is_integer(FORMAT)) values_of_integers<S, FORMAT, H, V>(p, b, out, d);
    else values_of_floats<S, FORMAT, H, V>(p, b, out, d);
}

// ---- one block, and all blocks of a piece

template <class S, int FORMAT, int H>
void block_rows(const Piece &p, const Block &b, int64_t first_row) {
    constexpr int V = is_integer(FORMAT) ? S::VECTORS : S::FLOAT_VECTORS;
    const Queries &q = p.queries[first_row / ROWS];
    if constexpr (is_integer(FORMAT)) scores_of_integers<S, FORMAT, H>(p, b, q);
    else scores_of_floats<S, FORMAT, H>(p, b, q);
    softmax<S, FORMAT, H>(p, b, first_row);
    float *out = p.out + first_row * p.head_dim;
    int64_t d = 0;
    for (; d + V * S::LANES <= p.head_dim; d += V * S::LANES) values_of<S, FORMAT, H, V>(p, b, out, d);
    for (; d < p.head_dim; d += S::LANES) values_of<S, FORMAT, H, 1>(p, b, out, d);
}

// Tokens behind the last are in no sum: their values get the scale 0, whatever the memory holds.
template <class S> void load_scales(const Block &b, Weights *w) {
    for (int64_t i = 0; i < BLOCK; i += S::LANES) {
        S::store(w->key_scale + i, S::bf16(b.scales + i));
        S::store(w->value_scale + i, S::bf16(b.scales + BLOCK + i));
    }
    for (int64_t i = b.tokens; i < BLOCK; i++) w->value_scale[i] = 0;
}

template <class S, int FORMAT> void attend(const Piece &p) {
    prepare<FORMAT>(p);
    std::fill(p.maximum, p.maximum + p.rows, LOWEST);
    std::fill(p.out, p.out + int64_t(p.rows) * p.head_dim, 0.0f);
    for (int64_t token = p.first; token < p.last; token += BLOCK) {
        const Block b = block_at<FORMAT>(p, token);
        if constexpr (is_integer(FORMAT)) load_scales<S>(b, p.weights);
        for (int64_t row = 0; row < p.rows; row += ROWS) {
            switch (std::min<int64_t>(ROWS, p.rows - row)) {
            case 1: block_rows<S, FORMAT, 1>(p, b, row); break;
            case 2: block_rows<S, FORMAT, 2>(p, b, row); break;
            case 3: block_rows<S, FORMAT, 3>(p, b, row); break;
            default: block_rows<S, FORMAT, 4>(p, b, row); break;
            }
        }
    }
    for (int64_t row = 0; row < p.rows; row++)
        p.sum[row] = S::total(S::load(p.queries[row / ROWS].sums[row % ROWS]));
}

template <class S> constexpr Variant variant() {
    return {{attend<S, CODESIGN_KV_FP16>, attend<S, CODESIGN_KV_BF16>, attend<S, CODESIGN_KV_INT8>,
             attend<S, CODESIGN_KV_INT4>}};
}

} // namespace
} // namespace codesign::kv
