"""What w8a16_gemm computes, in numpy: weights of 8 bits with group scales and zero points, in float64."""

import numpy as np
from numpy.typing import NDArray

BITS = 8
SYMMETRIC_ZERO = 1 << (BITS - 1)


def dequantize(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, group: int
) -> NDArray[np.float64]:
    """Return w[n, k] = (code - zero) * scale; scales and zeros are [n, groups], group 0 means one per row."""
    k = codes.shape[1]
    groups = np.arange(k) // (group or k)
    points = np.full(scales.shape, SYMMETRIC_ZERO, np.uint8) if zeros is None else zeros
    return (codes.astype(np.float64) - points[:, groups]) * scales[:, groups].astype(np.float64)


def multiply(
    x: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    group: int,
) -> NDArray[np.float64]:
    """Return x[m, k] · wᵀ."""
    return x.astype(np.float64) @ dequantize(codes, scales, zeros, group).T
