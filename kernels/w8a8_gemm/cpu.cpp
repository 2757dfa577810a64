#include "w8a8_gemm.h"

#include "common/int8_call.h"
#include "common/variants.h"

#include <cstring>

CODESIGN_VARIANTS(codesign_int8_variant, w8a8)

namespace {

constexpr int32_t UNSIGNED = 128; // added to the codes: the dot products of bytes want unsigned weights

int64_t panel_bytes(int64_t k) { return CODESIGN_INT8_FACTOR_BYTES + CODESIGN_INT8_COLUMNS * k; }

void pack_row(const int8_t *codes, int64_t k, int64_t column, uint8_t *panel) {
    uint8_t *at = panel + CODESIGN_INT8_FACTOR_BYTES + column * 4;
    for (int64_t i = 0; i < k; i += 4, at += CODESIGN_INT8_COLUMNS * 4)
        for (int64_t j = 0; j < 4; j++) at[j] = uint8_t(codes[i + j] + UNSIGNED);
}

} // namespace

int64_t codesign_w8a8_gemm_packed_bytes(int64_t n, int64_t k) {
    return valid_weights(n, k) ? panel_count(n) * panel_bytes(k) : -1;
}

int32_t codesign_w8a8_gemm_pack(const int8_t *codes, const float *scales, int64_t n, int64_t k, void *packed) {
    if (!valid_weights(n, k)) return CODESIGN_INT8_BAD_SHAPE;
    std::memset(packed, 0, size_t(codesign_w8a8_gemm_packed_bytes(n, k)));
    for (int64_t i = 0; i < n; i++) {
        const int64_t column = i % CODESIGN_INT8_COLUMNS;
        uint8_t *panel = (uint8_t *)packed + i / CODESIGN_INT8_COLUMNS * panel_bytes(k);
        std::memcpy(panel + column * 4, scales + i, 4);
        pack_row(codes + i * k, k, column, panel);
    }
    return CODESIGN_INT8_OK;
}

int64_t codesign_w8a8_gemm_workspace_bytes(int64_t m, int64_t k) { return workspace_bytes(m, k, 1); }

int32_t codesign_w8a8_gemm_run(int32_t isa, const void *x, int32_t x_dtype, const void *packed, void *out,
                               int32_t out_dtype, int64_t m, int64_t n, int64_t k, float static_scale, int32_t threads,
                               void *workspace) {
    if (!valid_weights(n, k)) return CODESIGN_INT8_BAD_SHAPE;
    codesign_int8_job job{};
    job.x = x, job.out = out, job.packed = (const uint8_t *)packed;
    job.m = m, job.n = n, job.k = k;
    job.group = k, job.groups = 1;
    job.panel_bytes = panel_bytes(k);
    job.x_dtype = x_dtype, job.out_dtype = out_dtype;
    job.sum_factor = -UNSIGNED;
    job.static_scale = static_scale;
    place(&job, workspace);
    return run_call(variant_of(VARIANTS, isa), &job, threads);
}
