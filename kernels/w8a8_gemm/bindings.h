#pragma once

#include "w8a8_gemm.h"

#include <nanobind/nanobind.h>

inline void bind_w8a8_gemm(nanobind::module_ &m) {
    using release = nanobind::call_guard<nanobind::gil_scoped_release>;
    m.def("w8a8_gemm_packed_bytes", &codesign_w8a8_gemm_packed_bytes);
    m.def("w8a8_gemm_workspace_bytes", &codesign_w8a8_gemm_workspace_bytes);
    m.def(
        "w8a8_gemm_pack",
        [](uintptr_t codes, uintptr_t scales, int64_t n, int64_t k, uintptr_t packed) {
            return codesign_w8a8_gemm_pack((const int8_t *)codes, (const float *)scales, n, k, (void *)packed);
        },
        release());
    m.def(
        "w8a8_gemm_run",
        [](int32_t isa, uintptr_t x, int32_t x_dtype, uintptr_t packed, uintptr_t out, int32_t out_dtype, int64_t m,
           int64_t n, int64_t k, float static_scale, int32_t threads, uintptr_t workspace) {
            return codesign_w8a8_gemm_run(isa, (const void *)x, x_dtype, (const void *)packed, (void *)out, out_dtype, m,
                                          n, k, static_scale, threads, (void *)workspace);
        },
        release());
}
