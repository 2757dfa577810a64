"""The W4A8 product in numpy, step by step: what the kernel computes exactly, with float64 sums."""

import gemm_reference
import numpy as np
from gemm_reference import quantize_rows
from numpy.typing import NDArray

BITS = 4


def stored_scales(scales: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return scales [n, groups] as the packed weights keep them: fp16 times a power of two per row."""
    largest = np.abs(scales).max(axis=1, keepdims=True)
    exponent = np.frexp(largest)[1]
    factor = np.ldexp(np.float32(1), np.where(exponent < -110, -125, exponent - 15))
    return (scales / factor).astype(np.float16).astype(np.float64) * factor


def dequantize(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, group: int
) -> NDArray[np.float64]:
    """Return w [n, k] = stored scale · (code − zero)."""
    return gemm_reference.dequantize(BITS, codes, stored_scales(scales), zeros, group)


def multiply(
    x: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    group: int,
) -> NDArray[np.float64]:
    """Return out [m, n] = round(x) · wᵀ."""
    a, a_scales = quantize_rows(x)
    return a_scales.astype(np.float64) * (a.astype(np.float64) @ dequantize(codes, scales, zeros, group).T)
