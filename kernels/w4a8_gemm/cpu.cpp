#include "w4a8_gemm.h"

#include "common/float_bits.h"
#include "common/int8_call.h"
#include "common/variants.h"
#include "layout.h"

#include <cmath>
#include <cstring>

CODESIGN_VARIANTS(codesign_int8_variant, w4a8)

namespace {

constexpr int32_t SYMMETRIC_ZERO = 8;

bool valid(int64_t n, int64_t k, int64_t group) {
    return valid_weights(n, k) && (group == 0 || group == 32 || group == 64 || group == 128);
}

// One row of w.
struct Row {
    const uint8_t *codes;
    const float *scales;
    const uint8_t *zeros;
};

// The power of two that brings the largest scale to [2^14, 2^15), just below the end of the range of fp16.
float factor_of(const float *scales, int64_t groups) {
    float largest = 0;
    for (int64_t i = 0; i < groups; i++) largest = std::fmax(largest, std::fabs(scales[i]));
    int exponent = 0;
    if (largest > 0 && std::isfinite(largest)) std::frexp(largest, &exponent);
    return std::ldexp(1.0f, exponent < -110 ? -125 : exponent - 15);
}

void pack_row(const Row &row, int64_t k, int64_t group, int64_t column, uint8_t *panel) {
    const int64_t length = group_length(k, group), groups = group_count(k, group);
    const float factor = factor_of(row.scales, groups);
    std::memcpy(panel + column * 4, &factor, 4);
    uint8_t *at = panel + CODESIGN_INT8_FACTOR_BYTES;
    for (int64_t g = 0; g < groups; g++) {
        const uint16_t scale = half_of_float(row.scales[g] / factor);
        std::memcpy(at + column * 2, &scale, 2);
        if (row.zeros) at[CODESIGN_INT8_COLUMNS * 2 + column] = row.zeros[g];
        at += group_head_bytes(row.zeros != nullptr);
        const int64_t end = g + 1 < groups ? (g + 1) * length : k;
        for (int64_t i = g * length; i < end; i += 8, at += CODESIGN_INT8_COLUMNS * 4)
            for (int64_t j = 0; j < 4; j++)
                at[column * 4 + j] = uint8_t((row.codes[i + j] & 15) | row.codes[i + 4 + j] << 4);
    }
}

} // namespace

int64_t codesign_w4a8_gemm_packed_bytes(int64_t n, int64_t k, int64_t group, int32_t asymmetric) {
    return valid(n, k, group) ? panel_count(n) * panel_bytes(k, group, asymmetric != 0) : -1;
}

int32_t codesign_w4a8_gemm_pack(const uint8_t *codes, const float *scales, const uint8_t *zeros, int64_t n, int64_t k,
                                int64_t group, void *packed) {
    if (!valid(n, k, group)) return CODESIGN_INT8_BAD_SHAPE;
    const int64_t groups = group_count(k, group), bytes = panel_bytes(k, group, zeros != nullptr);
    std::memset(packed, 0, size_t(panel_count(n) * bytes));
    for (int64_t i = 0; i < n; i++) {
        const Row row{codes + i * k, scales + i * groups, zeros ? zeros + i * groups : nullptr};
        const int64_t panel = i / CODESIGN_INT8_COLUMNS;
        pack_row(row, k, group, i % CODESIGN_INT8_COLUMNS, (uint8_t *)packed + panel * bytes);
    }
    return CODESIGN_INT8_OK;
}

int64_t codesign_w4a8_gemm_workspace_bytes(int64_t m, int64_t k, int64_t group) {
    return workspace_bytes(m, k, group_count(k, group));
}

int32_t codesign_w4a8_gemm_run(int32_t isa, const void *x, int32_t x_dtype, const void *packed, void *out,
                               int32_t out_dtype, int64_t m, int64_t n, int64_t k, int64_t group, int32_t asymmetric,
                               int32_t threads, void *workspace) {
    if (!valid(n, k, group)) return CODESIGN_INT8_BAD_SHAPE;
    codesign_int8_job job{};
    job.x = x, job.out = out, job.packed = (const uint8_t *)packed;
    job.m = m, job.n = n, job.k = k;
    job.group = group_length(k, group), job.groups = group_count(k, group);
    job.panel_bytes = panel_bytes(k, group, asymmetric != 0);
    job.x_dtype = x_dtype, job.out_dtype = out_dtype, job.asymmetric = asymmetric != 0;
    job.sum_factor = asymmetric ? -1 : -SYMMETRIC_ZERO;
    place(&job, workspace);
    return run_call(variant_of(VARIANTS, isa), &job, threads);
}
