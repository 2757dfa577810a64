// One lane of plain C++.
#pragma once

#include "layout.h"

#include "common/float_bits.h"

#include <cmath>

namespace codesign::kv::scalar {
namespace { // each variant compiles its own copy with its own flags

struct Simd {
    using F = float;
    using I = int32_t;
    using B = uint32_t; // four codes
    using Q = uint32_t; // four signed bytes, the same in every lane
    static constexpr int LANES = 1, VECTORS = 1, FLOAT_VECTORS = 4, BYTE_ZERO = 128;

    static I integers() { return 0; }
    static I combine(I high, I low, int32_t less) { return high * 128 + low - less; }
    static B raw(const uint8_t *p) {
        B four;
        memcpy(&four, p, 4);
        return four;
    }
    static B bytes(const uint8_t *p) { return raw(p); }
    static B low(B b) { return b & 0x0f0f0f0f; }
    static B high(B b) { return b >> 4 & 0x0f0f0f0f; }
    static B signed_low(B b) { return b << 4 & 0xf0f0f0f0; }
    static B signed_high(B b) { return b & 0xf0f0f0f0; }
    static Q quad(const int8_t *p) { return raw((const uint8_t *)p); }
    static I dot(I a, B codes, Q q) {
        for (int i = 0; i < 32; i += 8) a += int32_t(uint8_t(codes >> i)) * int8_t(q >> i);
        return a;
    }
    static I dot_signed(I a, B codes, Q q) {
        for (int i = 0; i < 32; i += 8) a += int8_t(codes >> i) * int8_t(q >> i);
        return a;
    }

    static F set(float x) { return x; }
    static F load(const float *p) { return *p; }
    static void store(float *p, F x) { *p = x; }
    static F number(I x) { return float(x); }
    static F add(F a, F b) { return a + b; }
    static F sub(F a, F b) { return a - b; }
    static F mul(F a, F b) { return a * b; }
    static F fma(F a, F b, F c) { return a * b + c; }
    static F max(F a, F b) { return a > b ? a : b; }
    static F fp16(const uint16_t *p) { return float_of_half(*p); }
    static F bf16(const uint16_t *p) { return float_of_bf16(*p); }
    static float highest(F x) { return x; }
    static float total(F x) { return x; }
    static F nearest(F x) { return std::nearbyintf(x); }
    static bool exceeds(F x, float limit) { return x > limit; }
    // y · 2^n, at least 2^-126.
    static F shifted(F y, F n) { return y * float_of_bits(uint32_t(int32_t(max(n, -126)) + 127) << 23); }
    // The integers nearest to x · factor, 0..16383, in two parts of seven bits; for a whole block.
    static void split(const float *x, float factor, int8_t *high, int8_t *low) {
        for (int64_t i = 0; i < BLOCK; i++) {
            const int32_t whole = int32_t(x[i] * factor + 0.5f);
            high[i] = int8_t(whole >> 7);
            low[i] = int8_t(whole & 127);
        }
    }
};

} // namespace
} // namespace codesign::kv::scalar
