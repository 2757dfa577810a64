// The micro-kernels of the variant being compiled, as CODESIGN_TABLE(bits of a code).
#pragma once

#if defined(CODESIGN_VARIANT_avx512) || defined(CODESIGN_VARIANT_avx512vnni)
#include "common/weight_only_vnni.h"
#define CODESIGN_TABLE(bits) vnni::table<bits>()
#elif defined(CODESIGN_VARIANT_avx2)
#include "common/weight_only_avx2.h"
#define CODESIGN_TABLE(bits) avx2::table<bits>()
#elif defined(CODESIGN_VARIANT_dotprod) || defined(CODESIGN_VARIANT_i8mm)
#include "common/weight_only_neon.h"
#define CODESIGN_TABLE(bits) neon::table<bits>()
#else
#include "common/weight_only_scalar.h"
#define CODESIGN_TABLE(bits) scalar::TABLE
#endif
