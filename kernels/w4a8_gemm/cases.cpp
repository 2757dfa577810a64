#include "common/cases.h"
#include "w4a8_gemm.h"

#include <cmath>

namespace {

bool run_one(FILE *source, FILE *target) {
    GroupedCase one;
    if (!next_case(source, &one)) return false;
    std::vector<uint8_t> packed(std::size_t(codesign_w4a8_gemm_packed_bytes(one.n, one.k, one.group, one.asymmetric)));
    std::vector<uint8_t> workspace(std::size_t(codesign_w4a8_gemm_workspace_bytes(one.m, one.k, one.group)));
    std::vector<float> out(std::size_t(one.m * one.n), NAN);
    codesign_w4a8_gemm_pack(one.codes.data(), one.scales.data(), one.zeros_or_null(), one.n, one.k, one.group, packed.data());
    codesign_w4a8_gemm_run(one.isa, one.x.data(), CODESIGN_FLOAT32, packed.data(), out.data(), CODESIGN_FLOAT32, one.m,
                           one.n, one.k, one.group, one.asymmetric, one.threads, workspace.data());
    return std::fwrite(out.data(), sizeof(float), out.size(), target) == out.size();
}

} // namespace

int main(int argc, char **argv) { return run_cases(argc, argv, run_one); }
