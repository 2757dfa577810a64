"""The W8A8 product in numpy, step by step: what the kernel computes exactly, with float64 sums."""

import numpy as np
from numpy.typing import NDArray

LARGEST_CODE = 127
SMALLEST_MAXIMUM = np.float32(1e-36)


def quantize_rows(x: NDArray[np.float32], static_scale: float | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 codes [m, k] and scales [m, 1]: the given one, or the largest magnitude of the row / 127."""
    maximum = np.abs(x).max(axis=1, keepdims=True)
    if static_scale is not None:
        scale = np.full_like(maximum, static_scale)
        inverse = np.float32(1) / scale
    else:
        usable = maximum >= SMALLEST_MAXIMUM
        scale = np.where(usable, maximum / np.float32(LARGEST_CODE), 0).astype(np.float32)
        inverse = np.where(usable, np.float32(LARGEST_CODE) / np.where(usable, maximum, 1), 0).astype(np.float32)
    return np.rint(np.clip(x * inverse, -LARGEST_CODE, LARGEST_CODE)).astype(np.int8), scale


def multiply(
    x: NDArray[np.float32], codes: NDArray[np.int8], scales: NDArray[np.float32], static_scale: float | None = None
) -> NDArray[np.float64]:
    """Return out [m, n] = round(x) · wᵀ, w [n, k] = scales [n, 1] · codes [n, k]."""
    a, a_scales = quantize_rows(x, static_scale)
    w = scales.astype(np.float64)[:, None] * codes.astype(np.float64)
    return a_scales.astype(np.float64) * (a.astype(np.float64) @ w.T)
