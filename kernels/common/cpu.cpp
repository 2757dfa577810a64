#include "cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

const char *const NAMES[CODESIGN_ISA_COUNT] = {"scalar", "avx2", "avx512vnni", "avx512", "dotprod", "i8mm"};

#if defined(__x86_64__)
bool runs(int32_t isa) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
    switch (isa) {
    case CODESIGN_ISA_AVX2: return avx2;
    case CODESIGN_ISA_AVX512VNNI: return vnni;
    case CODESIGN_ISA_AVX512: return bf16;
    default: return false;
    }
}
#elif defined(__aarch64__) && defined(__linux__)
bool runs(int32_t isa) {
    const bool dot = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    const unsigned long more = getauxval(AT_HWCAP2);
    switch (isa) {
    case CODESIGN_ISA_DOTPROD: return dot;
    case CODESIGN_ISA_I8MM: return dot && (more & HWCAP2_I8MM) && (more & HWCAP2_BF16);
    default: return false;
    }
}
#elif defined(__aarch64__) && defined(__APPLE__)
// Every Apple processor since the M1 has dot products of bytes.
bool runs(int32_t isa) { return isa == CODESIGN_ISA_DOTPROD; }
#else
bool runs(int32_t) { return false; }
#endif

} // namespace

int32_t codesign_isa_runs(int32_t isa) {
    return isa == CODESIGN_ISA_SCALAR || runs(isa);
}

int32_t codesign_isa_best(void) {
    int32_t best = CODESIGN_ISA_SCALAR;
    for (int32_t isa = 0; isa < CODESIGN_ISA_COUNT; isa++)
        if (codesign_isa_runs(isa)) best = isa;
    return best;
}

const char *codesign_isa_text(int32_t isa) {
    return isa >= 0 && isa < CODESIGN_ISA_COUNT ? NAMES[isa] : "unknown";
}
