// One instruction set's functions, chosen by the definition that the build sets.
#if defined(CODESIGN_VARIANT_avx512) || defined(CODESIGN_VARIANT_avx512vnni)
#include "simd_avx512.h"
namespace chosen = codesign::kv::avx512;
#elif defined(CODESIGN_VARIANT_avx2)
#include "simd_avx2.h"
namespace chosen = codesign::kv::avx2;
#elif defined(CODESIGN_VARIANT_dotprod) || defined(CODESIGN_VARIANT_i8mm)
#include "simd_neon.h"
namespace chosen = codesign::kv::neon;
#else
#include "simd_scalar.h"
namespace chosen = codesign::kv::scalar;
#endif

#include "attend.h"

#define CODESIGN_JOIN(first, second) first##second
#define CODESIGN_TABLE(variant) CODESIGN_JOIN(codesign_kv_attention_, variant)

extern const codesign::kv::Variant CODESIGN_TABLE(CODESIGN_VARIANT);
const codesign::kv::Variant CODESIGN_TABLE(CODESIGN_VARIANT) = codesign::kv::variant<chosen::Simd>();
