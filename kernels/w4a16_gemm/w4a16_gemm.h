// out[m, n] = x[m, k] · w[n, k]ᵀ, weights of 4 bits: w = (code - zero) * scale.
#pragma once

#include "common/weight_only_gemm.h"

extern "C" const codesign_weight_only_kernel codesign_w4a16_gemm;
