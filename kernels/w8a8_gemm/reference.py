"""The W8A8 product in numpy, step by step: what the kernel computes exactly, with float64 sums."""

import numpy as np
from gemm_reference import quantize_rows
from numpy.typing import NDArray


def multiply(
    x: NDArray[np.float32], codes: NDArray[np.int8], scales: NDArray[np.float32], static_scale: float | None = None
) -> NDArray[np.float64]:
    """Return out [m, n] = round(x) · wᵀ, w [n, k] = scales [n, 1] · codes [n, k]."""
    a, a_scales = quantize_rows(x, static_scale)
    w = scales.astype(np.float64)[:, None] * codes.astype(np.float64)
    return a_scales.astype(np.float64) * (a.astype(np.float64) @ w.T)
