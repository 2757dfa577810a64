// AVX2 with FMA and half-precision conversions, eight lanes.
#pragma once

#include "layout.h"

#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace codesign::kv::avx2 {
namespace { // each variant compiles its own copy with its own flags

struct Simd {
    using F = __m256;
    using I = __m256i;
    using B = __m256i;
    using Q = __m256i;
    static constexpr int LANES = 8, VECTORS = 1, FLOAT_VECTORS = 2, BYTE_ZERO = 0;

    static I integers() { return _mm256_setzero_si256(); }
    static I combine(I high, I low, int32_t less) {
        return _mm256_sub_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 7), low), _mm256_set1_epi32(less));
    }
    static B raw(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
    static B bytes(const uint8_t *p) { return _mm256_xor_si256(raw(p), _mm256_set1_epi8(-128)); }
    static B low(B b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
    static B high(B b) { return low(_mm256_srli_epi16(b, 4)); }
    static B signed_low(B b) { return signed_high(_mm256_slli_epi16(b, 4)); }
    static B signed_high(B b) { return _mm256_and_si256(b, _mm256_set1_epi8(-16)); }
    static Q quad(const int8_t *p) {
        int32_t four;
        memcpy(&four, p, 4);
        return _mm256_set1_epi32(four);
    }
    // The code's sign goes to the other factor: magnitudes up to 128 · 127, of which a pair fits in 16 bits.
    static I dot(I a, B codes, Q q) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(q, codes));
        return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static I dot_signed(I a, B codes, Q q) { return dot(a, codes, q); }

    static F set(float x) { return _mm256_set1_ps(x); }
    static F load(const float *p) { return _mm256_loadu_ps(p); }
    static void store(float *p, F x) { _mm256_storeu_ps(p, x); }
    static F number(I x) { return _mm256_cvtepi32_ps(x); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F fp16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
    static F bf16(const uint16_t *p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static float highest(F x) {
        __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_max_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
    }
    static float total(F x) {
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }
    static F nearest(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static bool exceeds(F x, float limit) { return highest(x) > limit; }
    // y · 2^n, at least 2^-126.
    static F shifted(F y, F n) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(max(n, set(-126))), _mm256_set1_epi32(127));
        return mul(y, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    }
    static void narrow(int8_t *to, I x) {
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(words, words));
    }
    static void split(const float *x, float factor, int8_t *high, int8_t *low) {
        for (int64_t i = 0; i < BLOCK; i += LANES) {
            const __m256i whole = _mm256_cvtps_epi32(mul(load(x + i), set(factor)));
            narrow(high + i, _mm256_srli_epi32(whole, 7));
            narrow(low + i, _mm256_and_si256(whole, _mm256_set1_epi32(127)));
        }
    }
};

} // namespace
} // namespace codesign::kv::avx2
