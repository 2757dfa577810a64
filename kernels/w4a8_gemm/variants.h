#pragma once

#include "common/int8_job.h"

extern const codesign_int8_variant codesign_w4a8_scalar, codesign_w4a8_avx2, codesign_w4a8_avx512vnni,
    codesign_w4a8_avx512, codesign_w4a8_dotprod, codesign_w4a8_i8mm;
