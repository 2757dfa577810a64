// One instruction set's functions, chosen by the definition that the build sets.
#include "common/weight_only_variant.h"

extern const codesign::weight_only::Variant CODESIGN_NAME(codesign_w8a16_gemm_);
const codesign::weight_only::Variant CODESIGN_NAME(codesign_w8a16_gemm_) = CODESIGN_TABLE(8);
