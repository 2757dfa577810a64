"""The W4A8 product in numpy, step by step: what the kernel computes exactly, with float64 sums."""

import numpy as np
from numpy.typing import NDArray

SYMMETRIC_ZERO = 8
LARGEST_CODE = 127
SMALLEST_MAXIMUM = np.float32(1e-36)


def group_index(k: int, group: int) -> NDArray[np.int64]:
    """Return [k]: the group of every column of w; group 0 is one group for all."""
    return np.arange(k, dtype=np.int64) // (group or k)


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
    of_column = group_index(codes.shape[1], group)
    zero = np.full(scales.shape, SYMMETRIC_ZERO) if zeros is None else zeros
    difference = codes.astype(np.float64) - zero.astype(np.float64)[:, of_column]
    return stored_scales(scales)[:, of_column] * difference


def quantize_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 codes [m, k] and scales [m, 1]: largest magnitude / 127, to the nearest, ties to even."""
    maximum = np.abs(x).max(axis=1, keepdims=True)
    usable = maximum >= SMALLEST_MAXIMUM
    inverse = np.where(usable, np.float32(LARGEST_CODE) / np.where(usable, maximum, 1), 0).astype(np.float32)
    scale = np.where(usable, maximum / np.float32(LARGEST_CODE), 0).astype(np.float32)
    return np.rint(x * inverse).astype(np.int8), scale


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
