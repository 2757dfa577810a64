// out[m, n] = x[m, k] · w[n, k]ᵀ with int4 weights and activations that are rounded to int8 per row inside the call.
//
// Weights: codes 0..15, w = scale · (code − zero). One scale and zero point per group of 32, 64 or 128 along k (the last
// group may be shorter), or per row of w (group = 0). Symmetric weights have zero = 8 everywhere. Scales are stored in 16
// bits: fp16 times a power of two per row of w, exact for scales that are fp16 or bf16 numbers of a usual spread.
// Activations: symmetric int8, scale = largest magnitude of the row / 127, rounded to the nearest, ties to even.
//
// Packed, per panel of 32 rows of w (panels · panel bytes in all):
//   float factor[32]                        the powers of two
//   per group: fp16 scale[32]; uint8 zero[32] if asymmetric; codes [k / 8][32][4]: byte j holds the code of k + j in its
//   low and of k + 4 + j in its high half
// Rows of w beyond n are zero.
#pragma once

#include "common/int8_run.h"

#include <stdint.h>

extern "C" {
// Bytes of the packed weights, -1 for a shape that is not allowed. No alignment is needed; 64 bytes are fastest.
int64_t codesign_w4a8_gemm_packed_bytes(int64_t n, int64_t k, int64_t group, int32_t asymmetric);
// codes [n, k] one per byte; scales [n, groups]; zeros [n, groups] of 0..255, nullptr for symmetric weights. Returns 0 or a
// codesign_int8_error.
int32_t codesign_w4a8_gemm_pack(const uint8_t *codes, const float *scales, const uint8_t *zeros, int64_t n, int64_t k,
                                int64_t group, void *packed);
// Bytes of scratch memory of one call, any alignment.
int64_t codesign_w4a8_gemm_workspace_bytes(int64_t m, int64_t k, int64_t group);
// One multiplication. A row of x with a value that is not finite gives NaN.
int32_t codesign_w4a8_gemm_run(int32_t isa, const void *x, int32_t x_dtype, const void *packed, void *out,
                               int32_t out_dtype, int64_t m, int64_t n, int64_t k, int64_t group, int32_t asymmetric,
                               int32_t threads, void *workspace);
}
