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

#include "common/variants.h"

extern const codesign::kv::Variant CODESIGN_VARIANT_OF(kv_attention) = codesign::kv::variant<chosen::Simd>();
