// 4-bit weights, 16-bit activations, on an NVIDIA GPU.
#define CODESIGN_BITS 4
#define CODESIGN_E4M3 0
#include "common/gpu_dequantize.h"
#include "common/gpu_weight_only.h"
