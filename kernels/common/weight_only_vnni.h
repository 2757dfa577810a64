// AVX-512 with VNNI. Activations become 16-bit integers with one scale per row and block of k, and each integer two
// signed bytes (256 high + low), so that codes multiply them as they lie in memory: two vpdpbusd do 64 products, as many
// as two vdpbf16ps, and nothing is converted. Rounding to 16 bits of a block's largest value errs less than rounding
// to bf16: a block of 256 has largest / rms <= 16, bf16 has 8 bits.
#pragma once

#include "weight_only_rounded.h"

#include <immintrin.h>

namespace {
namespace vnni {

using namespace codesign::weight_only;

constexpr int V = COLUMNS / 16; // vectors of a panel

inline __m512 load_floats(const void *x, int32_t dtype, int64_t at) {
    if (dtype == FLOAT32) return _mm512_loadu_ps((const float *)x + at);
    const __m256i halves = _mm256_loadu_si256((const __m256i *)((const uint16_t *)x + at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline uint32_t largest_bits(const Job &job, int64_t at, int64_t length) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < length; i += 16) {
        const __m512i bits = _mm512_castps_si512(load_floats(job.x, job.x_dtype, at + i));
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    return uint32_t(_mm512_reduce_max_epu32(largest));
}

// Four high bytes, four low bytes, and so on, so that a tile reads one stream per row.
inline int32_t split(const Job &job, int64_t at, int64_t length, float inverse, uint8_t *out) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < length; i += 16) {
        const __m512 x = load_floats(job.x, job.x_dtype, at + i);
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
        sum = _mm512_add_epi32(sum, q);
        const __m512i above = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
        const __m128i high = _mm512_cvtepi32_epi8(above), low = _mm512_cvtepi32_epi8(q);
        _mm_storeu_si128((__m128i *)(out + i * 2), _mm_unpacklo_epi32(high, low));
        _mm_storeu_si128((__m128i *)(out + i * 2 + 16), _mm_unpackhi_epi32(high, low));
    }
    return _mm512_reduce_add_epi32(sum);
}

// As assembly: GCC 12 spills accumulators round the intrinsic.
inline void dot(__m512i &sum, __m512i codes, __m512i bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(bytes));
}

inline __m512i broadcast(const int8_t *four) {
    int32_t value;
    memcpy(&value, four, 4);
    return _mm512_set1_epi32(value);
}

// The sums of R rows over V vectors of columns and a block, high and low bytes apart.
template <int R> struct Sums {
    __m512i high[R][V], low[R][V];
};

template <int BITS, int R>
inline void multiply(Sums<R> &sums, const uint8_t *codes, int64_t length, const int8_t *rows, int64_t stride,
                     const uint8_t *ahead) {
    const __m512i nibbles = _mm512_set1_epi8(15);
    for (int64_t k = 0; k < length; k += 32 / BITS, codes += COLUMNS * 4) {
        if (ahead) _mm_prefetch((const char *)ahead + k * BITS * 2, _MM_HINT_T0);
#pragma GCC unroll 8
        for (int half = 0; half < 8 / BITS; half++) {
            __m512i w[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                w[v] = _mm512_loadu_si512(codes + v * 64);
                if (BITS == 4) w[v] = _mm512_and_si512(half ? _mm512_srli_epi16(w[v], 4) : w[v], nibbles);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const int8_t *row = rows + r * stride * 2 + (k + half * 4) * 2;
                const __m512i high = broadcast(row), low = broadcast(row + 4);
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) dot(sums.high[r][v], w[v], high);
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) dot(sums.low[r][v], w[v], low);
            }
        }
    }
}

// The low sums begin with -zero times the row's sum, so that codes count from their zero point.
template <int BITS, int R, bool ASYMMETRIC>
inline void begin(Sums<R> &sums, const uint8_t *zeros, const int32_t *row_sums, int64_t blocks) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            sums.high[r][v] = _mm512_setzero_si512();
            const int32_t sum = -row_sums[r * blocks];
            if (ASYMMETRIC)
                sums.low[r][v] =
                    _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(zeros + v * 16))),
                                       _mm512_set1_epi32(sum));
            else
                sums.low[r][v] = _mm512_set1_epi32(sum * (1 << (BITS - 1)));
        }
}

inline __m512 load_scales(const uint8_t *meta, int v) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(meta + v * 32)));
}

template <int R>
inline void finish(const Sums<R> &sums, const uint8_t *meta, const float *row_scales, int64_t blocks, float *out) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
        const __m512 scales = load_scales(meta, v);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(sums.high[r][v], 8), sums.low[r][v]);
            const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(row_scales[r * blocks]));
            float *to = out + r * COLUMNS + v * 16;
            _mm512_store_ps(to, _mm512_fmadd_ps(scaled, scales, _mm512_load_ps(to)));
        }
    }
}

template <int BITS, int R, bool ASYMMETRIC>
void tile(const Job &job, int64_t panel, int64_t b, int64_t row, float *out, int64_t index, int64_t tiles) {
    const Layout &l = job.weights;
    const uint8_t *base = job.packed + panel * l.panel_bytes, *meta = base + l.meta_offset(l.group ? b : 0);
    const int8_t *rows = (const int8_t *)job.rows + (b * job.m + row) * l.block * 2;
    const int64_t at = row * l.blocks + b;
    // The first two tiles fetch half of the next block each, the others the rows of the tile behind them. A single one
    // reads at the pace at which the hardware fetches.
    const uint8_t *half = base + l.code_offset(b + 1) + index * l.code_bytes(l.block) / 2;
    const uint8_t *ahead = index < 2 ? half : (const uint8_t *)rows + R * l.block * 2;
    Sums<R> sums;
    begin<BITS, R, ASYMMETRIC>(sums, meta + COLUMNS * 2, job.row_sums + at, l.blocks);
    multiply<BITS, R>(sums, base + l.code_offset(b), l.block_k(b), rows, l.block,
                      tiles > 1 ? ahead : nullptr);
    finish<R>(sums, meta, job.row_scales + at, l.blocks, out);
}

using Tile = void (*)(const Job &, int64_t, int64_t, int64_t, float *, int64_t, int64_t);

// By rows; 24 accumulators at most.
template <int BITS, bool ASYMMETRIC>
constexpr Tile TILES[] = {nullptr,
                          tile<BITS, 1, ASYMMETRIC>,
                          tile<BITS, 2, ASYMMETRIC>,
                          tile<BITS, 3, ASYMMETRIC>,
                          tile<BITS, 4, ASYMMETRIC>,
                          tile<BITS, 5, ASYMMETRIC>,
                          tile<BITS, 6, ASYMMETRIC>};
constexpr int64_t TALLEST = 6;

inline void write(const Job &job, int64_t row, int64_t n, const float *sums, const float *multipliers) {
    const int64_t left = job.weights.n - n;
    const __mmask16 mask = left >= 16 ? 0xffff : __mmask16((1 << left) - 1);
    const __m512 values = _mm512_mul_ps(_mm512_load_ps(sums), _mm512_loadu_ps(multipliers));
    const int64_t at = row * job.weights.n + n;
    if (job.out_dtype == FLOAT32) {
        _mm512_mask_storeu_ps((float *)job.out + at, mask, values);
        return;
    }
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm512_mask_cvtepi32_storeu_epi16((uint16_t *)job.out + at, mask, _mm512_srli_epi32(kept, 16));
}

inline void write_rows(const Job &job, int64_t panel, int64_t first, int64_t rows, const float *sums) {
    const float *multipliers = (const float *)(job.packed + panel * job.weights.panel_bytes);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t v = 0; v < V && panel * COLUMNS + v * 16 < job.weights.n; v++)
            write(job, first + row, panel * COLUMNS + v * 16, sums + row * COLUMNS + v * 16, multipliers + v * 16);
}

// Splits `rows` into as few tiles as possible, of equal height as far as possible.
template <class Run> inline void each_tile(int64_t rows, int64_t tallest, Run run) {
    const int64_t tiles = (rows + tallest - 1) / tallest;
    for (int64_t t = 0; t < tiles; t++) run(rows * t / tiles, rows * (t + 1) / tiles - rows * t / tiles, t, tiles);
}

template <int BITS> void panel(const Job &job, int64_t p, Scratch scratch) {
    const Tile *tiles = job.weights.asymmetric ? TILES<BITS, true> : TILES<BITS, false>;
    const int64_t step = pass_rows(job.m);
    for (int64_t first = 0; first < job.m; first += step) {
        const int64_t rows = job.m - first < step ? job.m - first : step;
        memset(scratch.sums, 0, size_t(rows * COLUMNS * 4));
        for (int64_t b = 0; b < job.weights.blocks; b++)
            each_tile(rows, TALLEST, [&](int64_t row, int64_t height, int64_t index, int64_t count) {
                tiles[height](job, p, b, first + row, scratch.sums + row * COLUMNS, index, count);
            });
        write_rows(job, p, first, rows, scratch.sums);
    }
}

template <int BITS> constexpr Variant table() { return {rounded::prepare<largest_bits, split>, panel<BITS>}; }

} // namespace vnni
} // namespace
