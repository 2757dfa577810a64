// Rounding rows of activations to int8: plain C++, and AVX-512 by hand, because GCC 12 makes three times as many
// instructions of the former.
#pragma once

#include "float_bits.h"

#include <stdint.h>

#if defined(__AVX512BW__)
#include "int8_avx512.h"
#endif

namespace {

constexpr int64_t STEP = 32; // k is a multiple of it, and so is every group

struct FloatRow {
    const float *values;
    float operator[](int64_t i) const { return values[i]; }
};

struct Bf16Row {
    const uint16_t *values;
    float operator[](int64_t i) const { return float_of_bf16(values[i]); }
};

#if defined(__AVX512BW__)

inline __m512 sixteen(FloatRow row, int64_t at) { return _mm512_loadu_ps(row.values + at); }

inline __m512 sixteen(Bf16Row row, int64_t at) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(row.values + at)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// The largest magnitude as bits: unlike floats, their order includes infinities and NaNs.
template <class Row> uint32_t largest_magnitude(Row row, int64_t k) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i found[2] = {};
    for (int64_t at = 0; at < k; at += STEP)
        for (int64_t i = 0; i < 2; i++) {
            const __m512i bits = _mm512_castps_si512(sixteen(row, at + 16 * i));
            found[i] = _mm512_max_epu32(found[i], _mm512_and_si512(bits, magnitude));
        }
    return _mm512_reduce_max_epu32(_mm512_max_epu32(found[0], found[1]));
}

// Rounds `length` values to the nearest, ties to even, limits them to 127, and returns their sum.
template <class Row> int32_t quantize_values(Row row, int64_t begin, int64_t length, float inverse, int8_t *codes) {
    const __m512 factor = _mm512_set1_ps(inverse), limit = _mm512_set1_ps(127), lower = _mm512_set1_ps(-127);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t at = 0; at < length; at += 16) {
        const __m512 scaled = _mm512_mul_ps(sixteen(row, begin + at), factor);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, lower), limit));
        _mm_storeu_si128((__m128i *)(codes + at), _mm512_cvtepi32_epi8(whole));
        sum = _mm512_add_epi32(sum, whole);
    }
    return _mm512_reduce_add_epi32(sum);
}

#else

// The largest magnitude as bits: unlike floats, their order includes infinities and NaNs.
template <class Row> uint32_t largest_magnitude(Row row, int64_t k) {
    uint32_t found[STEP] = {};
    for (int64_t at = 0; at < k; at += STEP)
        for (int64_t i = 0; i < STEP; i++) {
            const uint32_t magnitude = bits_of_float(row[at + i]) & 0x7fffffff;
            found[i] = magnitude > found[i] ? magnitude : found[i];
        }
    uint32_t largest = 0;
    for (uint32_t one : found) largest = one > largest ? one : largest;
    return largest;
}

// Rounds `length` values to the nearest, ties to even, limits them to 127, and returns their sum.
template <class Row> int32_t quantize_values(Row row, int64_t begin, int64_t length, float inverse, int8_t *codes) {
    int32_t sums[STEP] = {}, sum = 0;
    for (int64_t at = 0; at < length; at += STEP)
        for (int64_t i = 0; i < STEP; i++) {
            const float scaled = row[begin + at + i] * inverse;
            const float above = scaled > -127.0f ? scaled : -127.0f;
            const int32_t whole = int32_t(__builtin_rintf(above < 127.0f ? above : 127.0f));
            codes[at + i] = int8_t(whole);
            sums[i] += whole;
        }
    for (int32_t one : sums) sum += one;
    return sum;
}

#endif

} // namespace
