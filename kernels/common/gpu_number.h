// The 16-bit number of activations, outputs and products: half precision or bfloat16, by CODESIGN_BFLOAT.
#pragma once

#include "gpu_device.h"

namespace codesign::gpu {

#if CODESIGN_BFLOAT
DEVICE uint32_t pair(float low, float high) { return bfloat_pair(low, high); }
DEVICE uint32_t fma(uint32_t a, uint32_t b, uint32_t c) { return bfloat_fma(a, b, c); }
DEVICE uint32_t add(uint32_t a, uint32_t b) { return bfloat_fma(a, 0x3f803f80u, b); } // sm_80 has no sum of pairs
DEVICE float widen(uint16_t bits) { return as_float(uint32_t(bits) << 16); }
DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { multiply_bfloat(sums, a, b); }
#else
DEVICE uint32_t pair(float low, float high) { return half_pair(low, high); }
DEVICE uint32_t fma(uint32_t a, uint32_t b, uint32_t c) { return half_fma(a, b, c); }
DEVICE uint32_t add(uint32_t a, uint32_t b) { return half_add(a, b); }
DEVICE float widen(uint16_t bits) { return float_of_half(bits); }
DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { multiply_half(sums, a, b); }
#endif

DEVICE uint16_t narrow(float x) { return uint16_t(pair(x, 0.0f)); }
DEVICE uint32_t twice(float x) { return pair(x, x); }

} // namespace codesign::gpu
