#include "w4a16_gemm.h"

#include "common/variants.h"
#include "common/weight_only.h"

CODESIGN_VARIANTS(codesign::weight_only::Variant, w4a16_gemm)

const codesign_weight_only_kernel codesign_w4a16_gemm = {4, VARIANTS};
