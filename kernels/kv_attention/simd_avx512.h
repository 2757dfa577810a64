// AVX-512 with dot products of bytes, sixteen lanes.
#pragma once

#include "layout.h"

#include <cstdint>

// GCC 12 warns of its own intrinsics' deliberately undefined registers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace codesign::kv::avx512 {
namespace { // each variant compiles its own copy with its own flags

struct Simd {
    using F = __m512;
    using I = __m512i;
    using B = __m512i;
    using Q = __m512i;
    static constexpr int LANES = 16, VECTORS = 2, FLOAT_VECTORS = 2, BYTE_ZERO = 128;

    static I integers() { return _mm512_setzero_si512(); }
    static I combine(I high, I low, int32_t less) {
        return _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 7), low), _mm512_set1_epi32(less));
    }
    static B raw(const uint8_t *p) { return _mm512_loadu_si512(p); }
    static B bytes(const uint8_t *p) { return raw(p); }
    static B low(B b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }
    static B high(B b) { return low(_mm512_srli_epi16(b, 4)); }
    static B signed_low(B b) { return signed_high(_mm512_slli_epi16(b, 4)); }
    static B signed_high(B b) { return _mm512_and_si512(b, _mm512_set1_epi8(-16)); }
    static Q quad(const int8_t *p) { return _mm512_set1_epi32(*(const int32_t *)p); }
    // Not the intrinsic: GCC 12 copies its accumulator through the stack.
    static I dot(I a, B codes, Q q) {
        asm("vpdpbusd %2, %1, %0" : "+v"(a) : "v"(codes), "v"(q));
        return a;
    }
    static I dot_signed(I a, B codes, Q q) { return dot(a, q, codes); }

    static F set(float x) { return _mm512_set1_ps(x); }
    static F load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, F x) { _mm512_storeu_ps(p, x); }
    static F number(I x) { return _mm512_cvtepi32_ps(x); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F fp16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
    static F bf16(const uint16_t *p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static float highest(F x) { return _mm512_reduce_max_ps(x); }
    static float total(F x) { return _mm512_reduce_add_ps(x); }
    static F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static bool exceeds(F x, float limit) { return _mm512_cmp_ps_mask(x, set(limit), _CMP_GT_OQ) != 0; }
    static F shifted(F y, F n) { return _mm512_scalef_ps(y, n); }
    // Narrows 64 integers; packing works within 16 bytes, so its dwords come out as a 4 x 4 transpose.
    static __m512i narrow(__m512i first, __m512i second) {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
    }
    static void split(const float *x, float factor, int8_t *high, int8_t *low) {
        for (int64_t i = 0; i < BLOCK; i += 64) {
            __m512i whole[4];
            for (int j = 0; j < 4; j++) whole[j] = _mm512_cvtps_epi32(mul(load(x + i + j * LANES), set(factor)));
            const __m512i a = _mm512_packus_epi32(whole[0], whole[1]), b = _mm512_packus_epi32(whole[2], whole[3]);
            const __m512i seven = _mm512_set1_epi16(127);
            _mm512_storeu_si512(high + i, narrow(_mm512_srli_epi16(a, 7), _mm512_srli_epi16(b, 7)));
            _mm512_storeu_si512(low + i, narrow(_mm512_and_si512(a, seven), _mm512_and_si512(b, seven)));
        }
    }
};

} // namespace
} // namespace codesign::kv::avx512
