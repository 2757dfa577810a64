// What the test programs of the kernels share: arrays from a file, results to another. They run under an emulator of
// another processor or with the compiler's sanitizers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

// The next `count` values of a file; `ended` once it has no more.
template <class Value> std::vector<Value> next(FILE *file, int64_t count, bool *ended) {
    std::vector<Value> values(static_cast<std::size_t>(count));
    *ended = std::fread(values.data(), sizeof(Value), values.size(), file) != values.size();
    return values;
}

// A call of a kernel with scales per group. In the file: int64 isa, m, n, k, group, asymmetric, threads; x [m, k]; codes
// [n, k]; scales [n, groups]; zeros [n, groups] if asymmetric. The program writes the outputs [m, n], or one NaN per
// output where the call is refused.
struct GroupedCase {
    int32_t isa, threads;
    int64_t m, n, k, group;
    bool asymmetric;
    std::vector<float> x, scales;
    std::vector<uint8_t> codes, zeros;

    const uint8_t *zeros_or_null() const { return asymmetric ? zeros.data() : nullptr; }
};

// Reads a case; false once the file has no more.
inline bool next_case(FILE *source, GroupedCase *one) {
    bool ended = false;
    const std::vector<int64_t> head = next<int64_t>(source, 7, &ended);
    if (ended) return false;
    one->isa = int32_t(head[0]), one->m = head[1], one->n = head[2], one->k = head[3], one->group = head[4];
    one->asymmetric = head[5] != 0, one->threads = int32_t(head[6]);
    const int64_t groups = one->group ? (one->k + one->group - 1) / one->group : 1;
    one->x = next<float>(source, one->m * one->k, &ended);
    one->codes = next<uint8_t>(source, one->n * one->k, &ended);
    one->scales = next<float>(source, one->n * groups, &ended);
    one->zeros = next<uint8_t>(source, one->asymmetric ? one->n * groups : 0, &ended);
    return true;
}

// Calls one(source, target) until it returns false; the files are named on the command line.
template <class Case> int run_cases(int argc, char **argv, Case one) {
    if (argc != 3) return 2;
    FILE *source = std::fopen(argv[1], "rb"), *target = std::fopen(argv[2], "wb");
    if (!source || !target) return 2;
    while (one(source, target)) {
    }
    return std::fclose(target) | std::fclose(source);
}

} // namespace
