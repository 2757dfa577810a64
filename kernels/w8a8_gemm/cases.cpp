// Runs cases from a file: int64 isa, m, n, k, threads; float static scale; x [m, k]; codes [n, k]; scales [n]. Writes the
// outputs [m, n], or one NaN per output where the call is refused.
#include "common/cases.h"
#include "w8a8_gemm.h"

#include <cmath>

namespace {

bool run_one(FILE *source, FILE *target) {
    bool ended = false;
    const std::vector<int64_t> head = next<int64_t>(source, 5, &ended);
    if (ended) return false;
    const int64_t m = head[1], n = head[2], k = head[3];
    const std::vector<float> static_scale = next<float>(source, 1, &ended), x = next<float>(source, m * k, &ended);
    const std::vector<int8_t> codes = next<int8_t>(source, n * k, &ended);
    const std::vector<float> scales = next<float>(source, n, &ended);
    std::vector<uint8_t> packed(std::size_t(codesign_w8a8_gemm_packed_bytes(n, k)));
    std::vector<uint8_t> workspace(std::size_t(codesign_w8a8_gemm_workspace_bytes(m, k)));
    std::vector<float> out(std::size_t(m * n), NAN);
    codesign_w8a8_gemm_pack(codes.data(), scales.data(), n, k, packed.data());
    codesign_w8a8_gemm_run(int32_t(head[0]), x.data(), CODESIGN_FLOAT32, packed.data(), out.data(), CODESIGN_FLOAT32, m, n,
                           k, static_scale[0], int32_t(head[4]), workspace.data());
    return std::fwrite(out.data(), sizeof(float), out.size(), target) == out.size();
}

} // namespace

int main(int argc, char **argv) { return run_cases(argc, argv, run_one); }
