// From codes to pairs of 16-bit numbers, a few instructions for each pair: a code becomes the low bits of a number whose
// upper bits are those of a power of two, which is then subtracted with the zero point, exactly.
#pragma once

#include "gpu_number.h"

namespace codesign::gpu {

// What decoded e4m3 must be multiplied with: half precision has it 2^-8 of its value.
constexpr float DECODED_FACTOR = CODESIGN_E4M3 && !CODESIGN_BFLOAT ? 256.0f : 1.0f;

// Bits of a code; 8 holds bytes counted from 128, or e4m3 where CODESIGN_E4M3.
constexpr int BITS = CODESIGN_BITS;

// Half precision: 1024 + code. Bfloat16 has 7 bits behind the leading one: 128 + code.
constexpr uint32_t MAGIC = CODESIGN_BFLOAT ? 0x43004300u : 0x64006400u;
constexpr float MAGIC_VALUE = CODESIGN_BFLOAT ? 128.0f : 1024.0f;

// What is added to the codes of the two rows of outputs that a lane holds.
struct Points {
    uint32_t first, second; // pairs of -(MAGIC_VALUE + zero)
    uint32_t second_high;   // of -(MAGIC_VALUE / 16 + zero), for codes that stand four bits higher
};

DEVICE Points points_of_middle() {
    return {twice(-MAGIC_VALUE - 8.0f), twice(-MAGIC_VALUE - 8.0f), twice(-MAGIC_VALUE / 16 - 8.0f)};
}

// From the bytes of both rows: they become the low bits of numbers below zero, as codes do of those above. 16 steps of
// 1024 are one of 64.
DEVICE Points points_of(uint32_t zeros) {
    const uint32_t first = pick_bytes(zeros, 0, 0x4040), second = pick_bytes(zeros, 0, 0x4141);
    return {first | MAGIC | 0x80008000u, second | MAGIC | 0x80008000u, second << 4 | 0xd400d400u};
}

// What every word of codes needs: where codes lie, and a pair of half-precision 1/16.
struct Masks {
    uint32_t low, high, sixteenth;
};

// A constant that the compiler does not know, because `k` might be negative: an instruction has room for one constant,
// and the compiler would rather load the other one again for each use than keep it in a register.
DEVICE uint32_t hidden(uint32_t constant, int k) { return kept(constant + (uint32_t(k) >> 31)); }

DEVICE Masks masks_of(int k) {
    return {hidden(0x000f000fu, k), hidden(0x00f000f0u, k), hidden(0x2c002c00u, k)};
}

// Four pairs of a fragment from a word of 8 codes: nibbles 0 and 4 are the first row's first pair, 1 and 5 the second
// row's, 2 and 6 and 3 and 7 the second pairs.
DEVICE void decode_nibbles(uint32_t (&a)[4], uint32_t codes, const Points &points, const Masks &masks) {
#if CODESIGN_BFLOAT
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = add(codes >> 4 * i & masks.low | MAGIC, i % 2 ? points.second : points.first);
#else
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        a[i] = add(codes >> 4 * i & masks.low | MAGIC, points.first);
        a[i + 1] = fma(codes >> 4 * i & masks.high | MAGIC, masks.sixteenth, points.second_high);
    }
#endif
}

#if CODESIGN_E4M3
// Pairs from a word of four e4m3 bytes. See DECODED_FACTOR.
DEVICE void decode_bytes(uint32_t (&pairs)[2], uint32_t codes, uint32_t) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t high = pick_bytes(codes, 0, i ? 0x3424 : 0x1404);
#if CODESIGN_BFLOAT
        const uint32_t small = high & 0x80008000u | (high & 0x7f007f00u) >> 4;
        pairs[i] = fma(small, 0x7b807b80u, 0x80008000u); // times 2^120, plus -0
#else
        pairs[i] = high & 0x80008000u | (high & 0x7f007f00u) >> 1;
#endif
    }
}
#elif CODESIGN_BFLOAT
// Bytes do not fit behind 128 of bfloat16: they go through float.
DEVICE void decode_bytes(uint32_t (&pairs)[2], uint32_t codes, uint32_t) {
    const auto value = [codes](int i) { return as_float(pick_bytes(codes, 0x4b000000, 0x7440 | i)) - 8388736.0f; };
    pairs[0] = pair(value(0), value(1));
    pairs[1] = pair(value(2), value(3));
}
#else
DEVICE void decode_bytes(uint32_t (&pairs)[2], uint32_t codes, uint32_t minus) {
    pairs[0] = fma(pick_bytes(codes, MAGIC, 0x5150), twice(1.0f), minus);
    pairs[1] = fma(pick_bytes(codes, MAGIC, 0x5352), twice(1.0f), minus);
}
#endif

} // namespace codesign::gpu
