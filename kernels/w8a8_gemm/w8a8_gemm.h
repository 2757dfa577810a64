// out[m, n] = x[m, k] · w[n, k]ᵀ with int8 weights and activations that are rounded to int8 inside the call.
//
// Weights: codes -128..127, w = scale · code, one scale per row of w. Activations: symmetric int8, one scale per row of x
// (largest magnitude / 127) or one given scale for all; rounded to the nearest, ties to even, limited to ±127.
//
// Packed, per panel of 32 rows of w: float scale[32], then [k / 4][32][4] bytes of code + 128. Rows beyond n have scale 0.
#pragma once

#include "common/int8_run.h"

#include <stdint.h>

extern "C" {
// Bytes of the packed weights, -1 for a shape that is not allowed. No alignment is needed; 64 bytes are fastest.
int64_t codesign_w8a8_gemm_packed_bytes(int64_t n, int64_t k);
// codes [n, k], scales [n]. Returns 0 or a codesign_int8_error.
int32_t codesign_w8a8_gemm_pack(const int8_t *codes, const float *scales, int64_t n, int64_t k, void *packed);
// Bytes of scratch memory of one call, any alignment.
int64_t codesign_w8a8_gemm_workspace_bytes(int64_t m, int64_t k);
// One multiplication; static_scale 0 takes a scale per row of x. A row with a value that is not finite gives NaN.
int32_t codesign_w8a8_gemm_run(int32_t isa, const void *x, int32_t x_dtype, const void *packed, void *out,
                               int32_t out_dtype, int64_t m, int64_t n, int64_t k, float static_scale, int32_t threads,
                               void *workspace);
}
