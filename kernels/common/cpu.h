// What this processor can run. The names and numbers are part of the C interface.
#pragma once

#include <cstdint>

enum codesign_isa_name : int32_t {
    CODESIGN_ISA_BEST = -1,      // the best that this processor runs
    CODESIGN_ISA_SCALAR = 0,     // plain C++, any processor
    CODESIGN_ISA_AVX2 = 1,       // AVX2, FMA, F16C
    CODESIGN_ISA_AVX512VNNI = 2, // AVX-512 F, BW, DQ, VL and VNNI (Ice Lake, Cascade Lake)
    CODESIGN_ISA_AVX512 = 3,     // the former with VBMI and BF16 dot products (Zen 4, Sapphire Rapids)
    CODESIGN_ISA_DOTPROD = 4,    // NEON with dot products of bytes (Armv8.2)
    CODESIGN_ISA_I8MM = 5,       // the former with matrix products of bytes and BF16 dot products (Armv8.6)
    CODESIGN_ISA_COUNT = 6,
};

extern "C" {
// 1 if this build holds the variant and this processor and system run it.
int32_t codesign_isa_runs(int32_t isa);
// The best variant that runs here.
int32_t codesign_isa_best(void);
// The name of a variant ("avx512"), or "unknown".
const char *codesign_isa_text(int32_t isa);
}
