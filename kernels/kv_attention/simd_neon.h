// NEON with dot products of bytes (Armv8.2), four lanes.
#pragma once

#include "layout.h"

#include <cstdint>
#include <cstring>

#include <arm_neon.h>

namespace codesign::kv::neon {
namespace { // each variant compiles its own copy with its own flags

struct Simd {
    using F = float32x4_t;
    using I = int32x4_t;
    using B = int8x16_t;
    using Q = int8x16_t;
    static constexpr int LANES = 4, VECTORS = 2, FLOAT_VECTORS = 4, BYTE_ZERO = 0;

    static I integers() { return vdupq_n_s32(0); }
    static I combine(I high, I low, int32_t less) {
        return vsubq_s32(vaddq_s32(vshlq_n_s32(high, 7), low), vdupq_n_s32(less));
    }
    static B raw(const uint8_t *p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
    static B bytes(const uint8_t *p) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128))); }
    static B low(B b) { return vandq_s8(b, vdupq_n_s8(15)); }
    static B high(B b) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(b), 4)); }
    static B signed_low(B b) { return vshlq_n_s8(b, 4); }
    static B signed_high(B b) { return vandq_s8(b, vdupq_n_s8(-16)); }
    static Q quad(const int8_t *p) {
        int32_t four;
        memcpy(&four, p, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(four));
    }
    static I dot(I a, B codes, Q q) { return vdotq_s32(a, codes, q); }

    static I dot_signed(I a, B codes, Q q) { return vdotq_s32(a, codes, q); }

    static F set(float x) { return vdupq_n_f32(x); }
    static F load(const float *p) { return vld1q_f32(p); }
    static void store(float *p, F x) { vst1q_f32(p, x); }
    static F number(I x) { return vcvtq_f32_s32(x); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F max(F a, F b) { return vmaxq_f32(a, b); }
    static F fp16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static F bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static float highest(F x) { return vmaxvq_f32(x); }
    static float total(F x) { return vaddvq_f32(x); }
    static F nearest(F x) { return vrndnq_f32(x); }
    static bool exceeds(F x, float limit) { return highest(x) > limit; }
    // y · 2^n, at least 2^-126.
    static F shifted(F y, F n) {
        const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(max(n, set(-126))), vdupq_n_s32(127));
        return vmulq_f32(y, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    }
    static void narrow(int8_t *to, I x) {
        const int16x4_t words = vmovn_s32(x);
        const int8x8_t eight = vmovn_s16(vcombine_s16(words, words));
        vst1_lane_s32((int32_t *)to, vreinterpret_s32_s8(eight), 0);
    }
    static void split(const float *x, float factor, int8_t *high, int8_t *low) {
        for (int64_t i = 0; i < BLOCK; i += LANES) {
            const int32x4_t whole = vcvtnq_s32_f32(mul(load(x + i), set(factor)));
            narrow(high + i, vshrq_n_s32(whole, 7));
            narrow(low + i, vandq_s32(whole, vdupq_n_s32(127)));
        }
    }
};

} // namespace
} // namespace codesign::kv::neon
