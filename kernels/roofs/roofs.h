// Probes of this machine's roofs. Every call does a known amount of work and returns; the caller takes the time.
#pragma once

#include <cstdint>

enum codesign_roof_rate : int32_t {
    CODESIGN_ROOF_FP32 = 0, // fused multiply-adds of 32-bit floats
    CODESIGN_ROOF_BF16 = 1, // dot products of pairs of bfloat16 into 32-bit floats
    CODESIGN_ROOF_INT8 = 2, // dot products of four bytes into 32-bit integers
    CODESIGN_ROOF_RATES = 3,
};

extern "C" {
// Reads `bytes` (a multiple of 4,096 per thread is used) at `memory` `passes` times, each thread its own part, in eight
// streams or in one. Returns a checksum, so that nothing is left out.
uint64_t codesign_roof_read(int32_t isa, const void *memory, int64_t bytes, int64_t passes, int32_t threads);
uint64_t codesign_roof_read_in_order(int32_t isa, const void *memory, int64_t bytes, int64_t passes, int32_t threads);
// Copies `bytes` from `source` to `target` `passes` times.
uint64_t codesign_roof_copy(int32_t isa, void *target, const void *source, int64_t bytes, int64_t passes, int32_t threads);
// Operations (two per multiply-add) of `steps` steps of a rate on one thread; 0 if the variant has no such instruction.
double codesign_roof_flop(int32_t isa, int32_t rate, int64_t steps);
// Runs that many steps on every thread. Returns a value that depends on all of them.
double codesign_roof_compute(int32_t isa, int32_t rate, int64_t steps, int32_t threads);
// `steps` dependent additions, one clock cycle each on every processor that we know of.
uint64_t codesign_roof_clock(int64_t steps);
}
