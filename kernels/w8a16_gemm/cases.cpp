// Runs cases from a file: int64 isa, m, n, k, group, asymmetric, threads; x [m, k]; codes [n, k]; scales [n, groups]; zeros
// [n, groups] if asymmetric. Writes the outputs [m, n], or one NaN per output where the call is refused.
#include "common/int8_cases.h"
#include "w8a16_gemm.h"

#include <cmath>

namespace {

bool run_one(FILE *source, FILE *target) {
    bool ended = false;
    const std::vector<int64_t> head = next<int64_t>(source, 7, &ended);
    if (ended) return false;
    const int64_t m = head[1], n = head[2], k = head[3], group = head[4], groups = group ? (k + group - 1) / group : 1;
    const bool asymmetric = head[5] != 0;
    const std::vector<float> x = next<float>(source, m * k, &ended);
    const std::vector<uint8_t> codes = next<uint8_t>(source, n * k, &ended);
    const std::vector<float> scales = next<float>(source, n * groups, &ended);
    const std::vector<uint8_t> zeros = next<uint8_t>(source, asymmetric ? n * groups : 0, &ended);
    std::vector<uint8_t> packed(std::size_t(codesign_w8a16_gemm_packed_bytes(n, k, group, asymmetric)));
    std::vector<uint8_t> workspace(std::size_t(codesign_w8a16_gemm_workspace_bytes(m, n, k, group, int32_t(head[6]))));
    std::vector<float> out(std::size_t(m * n), NAN);
    codesign_w8a16_gemm_pack(codes.data(), scales.data(), asymmetric ? zeros.data() : nullptr, packed.data(), n, k, group);
    codesign_w8a16_gemm_run(int32_t(head[0]), x.data(), 0, packed.data(), out.data(), 0, m, n, k, group, asymmetric,
                           int32_t(head[6]), workspace.data());
    return std::fwrite(out.data(), sizeof(float), out.size(), target) == out.size();
}

} // namespace

int main(int argc, char **argv) { return run_cases(argc, argv, run_one); }
