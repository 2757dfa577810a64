// What the test programs of w4a8_gemm and w8a8_gemm share: arrays from a file, results to another. They run under an
// emulator of another processor or with the compiler's sanitizers.
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
