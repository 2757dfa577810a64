// Numbers of the C interfaces of w4a8_gemm and w8a8_gemm.
#pragma once

#include <stdint.h>

enum codesign_int8_error : int32_t {
    CODESIGN_INT8_OK = 0,
    CODESIGN_INT8_BAD_SHAPE = 1,   // m, n or k < 1, k no multiple of 32 or above 131,072, group not 0, 32, 64 or 128
    CODESIGN_INT8_BAD_VARIANT = 2, // this build or this processor lacks it
    CODESIGN_INT8_BAD_DTYPE = 3,
    CODESIGN_INT8_BAD_SCALE = 4,   // a static scale that is negative or not finite
};

enum codesign_int8_dtype : int32_t { CODESIGN_FLOAT32 = 0, CODESIGN_BFLOAT16 = 1 };

// Longer sums of products of bytes could leave 32 bits.
constexpr int64_t CODESIGN_INT8_MAX_K = 131072;
