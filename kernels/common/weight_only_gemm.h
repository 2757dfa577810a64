// The C interface of the kernels with 16-bit activations: out[m, n] = x[m, k] · w[n, k]ᵀ, w = (code - zero) * scale. Each
// of them (w4a16_gemm, w8a16_gemm) is one object, which says how many bits a code has.
#pragma once

#include <cstdint>

struct codesign_weight_only_kernel;

extern "C" {
// Bytes of packed weights; 0 for a shape that is not supported. n >= 1; k a multiple of 32; group 32, 64, 128, or 0
// for one scale per row; asymmetric 0 (the zero point is the middle code, 8 or 128) or 1.
int64_t codesign_weight_only_packed_bytes(const codesign_weight_only_kernel *kernel, int64_t n, int64_t k,
                                          int64_t group, int32_t asymmetric);

// Packs codes [n, k] (bytes, below 16 where they have 4 bits), scales [n, ceil(k / group)] (float32, finite) and zeros
// (codes, shaped like the scales; null: symmetric) into `packed`, best on a page of 2 MiB. Grouped scales are kept as
// fp16 relative to the largest of their row. Returns 0, or 1 for a shape that is not supported.
int32_t codesign_weight_only_pack(const codesign_weight_only_kernel *kernel, const uint8_t *codes, const float *scales,
                                  const uint8_t *zeros, void *packed, int64_t n, int64_t k, int64_t group);

// Bytes of workspace that one run needs; no alignment asked.
int64_t codesign_weight_only_workspace_bytes(const codesign_weight_only_kernel *kernel, int64_t m, int64_t n, int64_t k,
                                             int64_t group, int32_t threads);

// Runs. isa: codesign_isa_name, -1 for the best. dtypes: 0 float32, 1 bfloat16. x and out are dense, row by row, with
// the alignment of their type. Returns 0; 1: unsupported shape; 2: the variant does not run here; 3: unknown dtype.
int32_t codesign_weight_only_run(const codesign_weight_only_kernel *kernel, int32_t isa, const void *x, int32_t x_dtype,
                                 const void *packed, void *out, int32_t out_dtype, int64_t m, int64_t n, int64_t k,
                                 int64_t group, int32_t asymmetric, int32_t threads, void *workspace);
}
