// AVX2. Activations become 16-bit integers with one scale per row and block of k, as in weight_only_vnni.h; codes are
// widened to 16 bits and multiplied by vpmaddwd, which does 16 products where a float32 multiply-add does 8.
#pragma once

#include "weight_only_rounded.h"

#include <immintrin.h>

namespace {
namespace avx2 {

using namespace codesign::weight_only;

constexpr int VECTORS = COLUMNS / 8;

inline __m256 load_floats(const void *x, int32_t dtype, int64_t at) {
    if (dtype == FLOAT32) return _mm256_loadu_ps((const float *)x + at);
    const __m128i halves = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline uint32_t largest_bits(const Job &job, int64_t at, int64_t length) {
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < length; i += 8) {
        const __m256i bits = _mm256_castps_si256(load_floats(job.x, job.x_dtype, at + i));
        largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    uint32_t lanes[8], most = 0;
    _mm256_storeu_si256((__m256i *)lanes, largest);
    for (uint32_t lane : lanes) most = lane > most ? lane : most;
    return most;
}

// Each four of k in the order 0, 2, 1, 3: the pairs that masking even and odd bytes of four codes leaves.
inline int32_t round_to_16_bits(const Job &job, int64_t at, int64_t length, float inverse, uint8_t *out) {
    int16_t *words = (int16_t *)out;
    const __m256i order = _mm256_set1_epi64x(0x0706030205040100);
    __m256i sum = _mm256_setzero_si256();
    for (int64_t i = 0; i < length; i += 8) {
        const __m256 x = load_floats(job.x, job.x_dtype, at + i);
        const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse)));
        sum = _mm256_add_epi32(sum, q);
        // packs: lanes hold k 0-3 and their copies, 4-7 and their copies
        const __m256i twice = _mm256_packs_epi32(q, q);
        const __m256i pairs = _mm256_shuffle_epi8(twice, order);
        _mm_storel_epi64((__m128i *)(words + i), _mm256_castsi256_si128(pairs));
        _mm_storel_epi64((__m128i *)(words + i + 4), _mm256_extracti128_si256(pairs, 1));
    }
    int32_t lanes[8], total = 0;
    _mm256_storeu_si256((__m256i *)lanes, sum);
    for (int32_t lane : lanes) total += lane;
    return total;
}

inline __m256i broadcast(const int16_t *pair) {
    int32_t value;
    memcpy(&value, pair, 4);
    return _mm256_set1_epi32(value);
}

// Pairs of codes as 16-bit integers: part p of a vector of bytes or of half bytes.
template <int BITS> inline __m256i pairs(__m256i codes, int part) {
    if (BITS == 8) return part ? _mm256_srli_epi16(codes, 8) : _mm256_and_si256(codes, _mm256_set1_epi16(255));
    const int shift = part % 2 * 8 + part / 2 * 4; // low halves of even, odd bytes, then high halves
    return _mm256_and_si256(_mm256_srli_epi16(codes, shift), _mm256_set1_epi16(15));
}

template <int BITS, int R, int V>
inline void multiply(__m256i (&sums)[R][V], const uint8_t *codes, int64_t length, const int16_t *rows, int64_t stride) {
    for (int64_t k = 0; k < length; k += 32 / BITS, codes += COLUMNS * 4)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const __m256i w = _mm256_loadu_si256((const __m256i *)(codes + v * 32));
#pragma GCC unroll 8
            for (int part = 0; part < 16 / BITS; part++) {
                const __m256i pair = pairs<BITS>(w, part);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
                    sums[r][v] = _mm256_add_epi32(
                        sums[r][v], _mm256_madd_epi16(pair, broadcast(rows + r * stride + k + part * 2)));
            }
        }
}

template <int BITS, bool ASYMMETRIC> inline __m256i zeros_of(const uint8_t *zeros, int v) {
    if (!ASYMMETRIC) return _mm256_set1_epi32(1 << (BITS - 1));
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + v * 8)));
}

template <int BITS, int R, int V, bool ASYMMETRIC>
void tile(const Job &job, int64_t panel, int64_t b, int64_t row, float *out) {
    const Layout &l = job.weights;
    const uint8_t *base = job.packed + panel * l.panel_bytes, *meta = base + l.meta_offset(l.group ? b : 0);
    const int16_t *rows = (const int16_t *)job.rows + (b * job.m + row) * l.block;
    for (int first = 0; first < VECTORS; first += V) {
        __m256i sums[R][V] = {};
        multiply<BITS, R, V>(sums, base + l.code_offset(b) + first * 32, l.block_k(b), rows, l.block);
        for (int v = 0; v < V; v++) {
            const __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(meta + (first + v) * 16)));
            const __m256i zeros = zeros_of<BITS, ASYMMETRIC>(meta + COLUMNS * 2, first + v);
            for (int r = 0; r < R; r++) {
                const int64_t at = (row + r) * l.blocks + b;
                const __m256i below = _mm256_mullo_epi32(zeros, _mm256_set1_epi32(job.row_sums[at]));
                const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[r][v], below));
                const __m256 scaled = _mm256_mul_ps(exact, _mm256_set1_ps(job.row_scales[at]));
                float *to = out + r * COLUMNS + (first + v) * 8;
                _mm256_storeu_ps(to, _mm256_fmadd_ps(scaled, scales, _mm256_loadu_ps(to)));
            }
        }
    }
}

// By rows; eight accumulators at most, as the other eight registers hold codes, products and activations.
template <int BITS, bool ASYMMETRIC>
constexpr rounded::Tile TILES[] = {nullptr, tile<BITS, 1, 4, ASYMMETRIC>, tile<BITS, 2, 4, ASYMMETRIC>,
                          tile<BITS, 3, 2, ASYMMETRIC>, tile<BITS, 4, 2, ASYMMETRIC>};
constexpr int64_t TALLEST = 4;

template <int BITS> void panel(const Job &job, int64_t p, Scratch scratch) {
    rounded::panel<TALLEST>(job, p, scratch, job.weights.asymmetric ? TILES<BITS, true> : TILES<BITS, false>);
}

template <int BITS> constexpr Variant table() {
    return {rounded::prepare<largest_bits, round_to_16_bits>, panel<BITS>};
}

} // namespace avx2
} // namespace
