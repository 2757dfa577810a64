"""What the multiplying kernels have in common, in numpy: how codes become weights and activations become codes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_CODE = 127
SMALLEST_MAXIMUM = np.float32(1e-36)


def dequantize(
    bits: int, codes: NDArray[np.uint8], scales: NDArray[np.floating[Any]], zeros: NDArray[np.uint8] | None, group: int
) -> NDArray[np.float64]:
    """Return w[n, k] = (code - zero) * scale; scales and zeros are [n, groups], group 0 means one per row.

    Without zeros codes count from the one in the middle.
    """
    k = codes.shape[1]
    groups = np.arange(k) // (group or k)
    points = np.full(scales.shape, 1 << (bits - 1), np.uint8) if zeros is None else zeros
    return (codes.astype(np.float64) - points[:, groups]) * scales[:, groups].astype(np.float64)


def multiply_weight_only(
    bits: int,
    x: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    group: int,
) -> NDArray[np.float64]:
    """Return x[m, k] · wᵀ."""
    return x.astype(np.float64) @ dequantize(bits, codes, scales, zeros, group).T


def quantize_rows(
    x: NDArray[np.float32], static_scale: float | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 codes [m, k], ties to even, and scales [m, 1]: the given one, or that of each row's largest / 127."""
    maximum = np.abs(x).max(axis=1, keepdims=True)
    if static_scale is not None:
        scale = np.full_like(maximum, static_scale)
        inverse = np.float32(1) / scale
    else:
        usable = maximum >= SMALLEST_MAXIMUM
        scale = np.where(usable, maximum / np.float32(LARGEST_CODE), 0).astype(np.float32)
        inverse = np.where(usable, np.float32(LARGEST_CODE) / np.where(usable, maximum, 1), 0).astype(np.float32)
    return np.rint(np.clip(x * inverse, -LARGEST_CODE, LARGEST_CODE)).astype(np.int8), scale
