// The test program of a kernel with 16-bit activations, but for main.
#pragma once

#include "cases.h"
#include "weight_only_gemm.h"

#include <cmath>

namespace {

inline bool run_one(const codesign_weight_only_kernel *kernel, FILE *source, FILE *target) {
    GroupedCase one;
    if (!next_case(source, &one)) return false;
    std::vector<uint8_t> packed(
        std::size_t(codesign_weight_only_packed_bytes(kernel, one.n, one.k, one.group, one.asymmetric)));
    std::vector<uint8_t> workspace(
        std::size_t(codesign_weight_only_workspace_bytes(kernel, one.m, one.n, one.k, one.group, one.threads)));
    std::vector<float> out(std::size_t(one.m * one.n), NAN);
    codesign_weight_only_pack(kernel, one.codes.data(), one.scales.data(), one.zeros_or_null(), packed.data(), one.n, one.k,
                              one.group);
    codesign_weight_only_run(kernel, one.isa, one.x.data(), 0, packed.data(), out.data(), 0, one.m, one.n, one.k, one.group,
                             one.asymmetric, one.threads, workspace.data());
    return std::fwrite(out.data(), sizeof(float), out.size(), target) == out.size();
}

} // namespace
