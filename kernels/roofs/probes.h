// What each variant of the probes offers to cpu.cpp.
#pragma once

#include <cstdint>

struct codesign_roof_variant {
    uint64_t (*read[2])(const void *memory, int64_t bytes, int64_t passes); // in eight streams, in one
    void (*copy)(void *target, const void *source, int64_t bytes, int64_t passes);
    double (*compute[3])(int64_t steps); // by codesign_roof_rate; nullptr where there is no such instruction
    double flop_per_step[3];
};
