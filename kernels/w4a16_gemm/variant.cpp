// One instruction set's functions, chosen by the definition that the build sets.
#include "common/variants.h"
#include "common/weight_only_variant.h"

extern const codesign::weight_only::Variant CODESIGN_VARIANT_OF(w4a16_gemm) = CODESIGN_TABLE(4);
