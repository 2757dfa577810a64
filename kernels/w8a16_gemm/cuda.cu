// 8-bit weights (int8, or e4m3 where CODESIGN_E4M3), 16-bit activations, on an NVIDIA GPU.
#define CODESIGN_BITS 8
#define CODESIGN_ZEROS 0
#include "common/gpu_dequantize.h"
#include "common/gpu_weight_only.h"
