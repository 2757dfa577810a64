#include "w8a16_gemm.h"

#include "common/variants.h"
#include "common/weight_only.h"

CODESIGN_VARIANTS(codesign::weight_only::Variant, w8a16_gemm)

const codesign_weight_only_kernel codesign_w8a16_gemm = {8, VARIANTS};
