#pragma once

#include "common/int8_job.h"

extern const codesign_int8_variant codesign_w8a8_scalar, codesign_w8a8_avx2, codesign_w8a8_avx512vnni,
    codesign_w8a8_avx512, codesign_w8a8_dotprod, codesign_w8a8_i8mm;
