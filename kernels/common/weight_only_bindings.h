#pragma once

#include "weight_only_gemm.h"

#include <nanobind/nanobind.h>

#include <string>

// Binds a kernel's functions as <name>_packed_bytes and so on.
inline void bind_weight_only(nanobind::module_ &m, const std::string &name, const codesign_weight_only_kernel *kernel) {
    using release = nanobind::call_guard<nanobind::gil_scoped_release>;
    m.def((name + "_packed_bytes").c_str(), [kernel](int64_t n, int64_t k, int64_t group, int32_t asymmetric) {
        return codesign_weight_only_packed_bytes(kernel, n, k, group, asymmetric);
    });
    m.def((name + "_workspace_bytes").c_str(), [kernel](int64_t rows, int64_t n, int64_t k, int64_t group, int32_t threads) {
        return codesign_weight_only_workspace_bytes(kernel, rows, n, k, group, threads);
    });
    m.def(
        (name + "_pack").c_str(),
        [kernel](uintptr_t codes, uintptr_t scales, uintptr_t zeros, uintptr_t packed, int64_t n, int64_t k, int64_t group) {
            return codesign_weight_only_pack(kernel, (const uint8_t *)codes, (const float *)scales,
                                             (const uint8_t *)zeros, (void *)packed, n, k, group);
        },
        release());
    m.def(
        (name + "_run").c_str(),
        [kernel](int32_t isa, uintptr_t x, int32_t x_dtype, uintptr_t packed, uintptr_t out, int32_t out_dtype,
                 int64_t rows, int64_t n, int64_t k, int64_t group, int32_t asymmetric, int32_t threads,
                 uintptr_t workspace) {
            return codesign_weight_only_run(kernel, isa, (const void *)x, x_dtype, (const void *)packed, (void *)out,
                                            out_dtype, rows, n, k, group, asymmetric, threads, (void *)workspace);
        },
        release());
}
