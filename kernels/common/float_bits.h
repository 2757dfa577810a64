// Conversions of 16-bit floating-point numbers, bit by bit: for packing, and for variants without instructions for them.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of_bf16(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }

// To the nearest, ties to even; a NaN stays one.
inline uint16_t bf16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Multiplying by 2^112 moves the exponent of a half, numbers below its normal range included, to that of a float.
inline float float_of_half(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
    const float scaled = float_of_bits(magnitude) * float_of_bits(uint32_t(127 + 112) << 23);
    const uint32_t bits = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : bits_of_float(scaled);
    return float_of_bits(bits | uint32_t(half & 0x8000) << 16);
}

// For |value| < 65520; to the nearest, ties to even: adding a power of two 13 bits up rounds the low bits away.
inline uint16_t half_of_float(float value) {
    const uint32_t sign = bits_of_float(value) & 0x80000000;
    const float magnitude = float_of_bits(bits_of_float(value) ^ sign);
    const uint32_t exponent = bits_of_float(magnitude) >> 23;
    if (exponent < 113) { // below 2^-14: halves are multiples of 2^-24
        const float rounded = magnitude + 0.5f;
        return uint16_t(sign >> 16 | (bits_of_float(rounded) - bits_of_float(0.5f)));
    }
    const uint32_t bits = bits_of_float(magnitude) - (uint32_t(112) << 23);
    return uint16_t(sign >> 16 | (bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

} // namespace
