"""What w8a16_gemm computes, in numpy: weights of 8 bits with group scales and zero points, in float64."""

from functools import partial

import gemm_reference

BITS = 8

dequantize = partial(gemm_reference.dequantize, BITS)
multiply = partial(gemm_reference.multiply_weight_only, BITS)
