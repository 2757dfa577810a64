#pragma once

#include "w8a16_gemm.h"

#include <nanobind/nanobind.h>

inline void bind_w8a16_gemm(nanobind::module_ &m) {
    using release = nanobind::call_guard<nanobind::gil_scoped_release>;
    m.def("w8a16_gemm_packed_bytes", &codesign_w8a16_gemm_packed_bytes);
    m.def("w8a16_gemm_workspace_bytes", &codesign_w8a16_gemm_workspace_bytes);
    m.def(
        "w8a16_gemm_pack",
        [](uintptr_t codes, uintptr_t scales, uintptr_t zeros, uintptr_t packed, int64_t n, int64_t k, int64_t group) {
            return codesign_w8a16_gemm_pack((const uint8_t *)codes, (const float *)scales, (const uint8_t *)zeros,
                                            (void *)packed, n, k, group);
        },
        release());
    m.def(
        "w8a16_gemm_run",
        [](int32_t isa, uintptr_t x, int32_t x_dtype, uintptr_t packed, uintptr_t out, int32_t out_dtype, int64_t rows,
           int64_t n, int64_t k, int64_t group, int32_t asymmetric, int32_t threads, uintptr_t workspace) {
            return codesign_w8a16_gemm_run(isa, (const void *)x, x_dtype, (const void *)packed, (void *)out, out_dtype,
                                           rows, n, k, group, asymmetric, threads, (void *)workspace);
        },
        release());
}
