// The variants of a kernel as named tables codesign_<kernel>_<variant>: <kernel>/variant.cpp defines the one that is being
// compiled, <kernel>/cpu.cpp lists those of the build.
#pragma once

#include "cpu.h"

#define CODESIGN_JOIN(first, second) first##second
#define CODESIGN_JOIN_VALUES(first, second) CODESIGN_JOIN(first, second)

// The name of the table that is being compiled.
#define CODESIGN_VARIANT_OF(kernel) CODESIGN_JOIN_VALUES(codesign_##kernel##_, CODESIGN_VARIANT)

// Declares the tables of a kernel and makes VARIANTS of them, by codesign_isa_name; nullptr where the build has none.
#if defined(CODESIGN_HAS_avx512)
#define CODESIGN_VARIANTS(Table, kernel)                                                                               \
    extern const Table codesign_##kernel##_scalar, codesign_##kernel##_avx2, codesign_##kernel##_avx512vnni,           \
        codesign_##kernel##_avx512;                                                                                    \
    static const Table *const VARIANTS[CODESIGN_ISA_COUNT] = {                                                         \
        &codesign_##kernel##_scalar, &codesign_##kernel##_avx2, &codesign_##kernel##_avx512vnni,                       \
        &codesign_##kernel##_avx512};
#elif defined(CODESIGN_HAS_i8mm)
#define CODESIGN_VARIANTS(Table, kernel)                                                                               \
    extern const Table codesign_##kernel##_scalar, codesign_##kernel##_dotprod, codesign_##kernel##_i8mm;              \
    static const Table *const VARIANTS[CODESIGN_ISA_COUNT] = {                                                         \
        &codesign_##kernel##_scalar, nullptr, nullptr, nullptr, &codesign_##kernel##_dotprod, &codesign_##kernel##_i8mm};
#else
#define CODESIGN_VARIANTS(Table, kernel)                                                                               \
    extern const Table codesign_##kernel##_scalar;                                                                     \
    static const Table *const VARIANTS[CODESIGN_ISA_COUNT] = {&codesign_##kernel##_scalar};
#endif

// The table that is asked for; nullptr where the build or this processor lacks it.
template <class Table> inline const Table *variant_of(const Table *const *variants, int32_t isa) {
    if (isa == CODESIGN_ISA_BEST) isa = codesign_isa_best();
    return isa >= 0 && isa < CODESIGN_ISA_COUNT && codesign_isa_runs(isa) ? variants[isa] : nullptr;
}
