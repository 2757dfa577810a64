"""Our W4A8 and W8A8 kernels on numpy arrays: weights packed once, activations rounded to int8 inside each call."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codesign.native import load
from codesign.native.call import BEST, Call, expect, grouped_arrays, raise_if, run_call
from codesign.native.packed import PackedWeights


@dataclass(frozen=True, slots=True)
class W4A8Weights:
    """Packed int4 weights [n, k]; group 0 has one scale per row."""

    pages: PackedWeights
    n: int
    k: int
    group: int
    asymmetric: bool


@dataclass(frozen=True, slots=True)
class W8A8Weights:
    """Packed int8 weights [n, k] with one scale per row."""

    pages: PackedWeights
    n: int
    k: int


def pack_w4a8(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, group: int
) -> W4A8Weights:
    """Pack codes [n, k] of 0..15, scales and zero points [n, groups]; without zero points w = scale · (code − 8)."""
    native, (n, k) = load(), codes.shape
    byte_count = native.w4a8_gemm_packed_bytes(n, k, group, zeros is not None)
    raise_if(1 if byte_count < 0 else 0)
    arrays = grouped_arrays(codes, scales, zeros, group)
    pages = PackedWeights(byte_count)
    raise_if(native.w4a8_gemm_pack(*arrays.addresses, n, k, group, pages.address))
    return W4A8Weights(pages, n, k, group, zeros is not None)


def pack_w8a8(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> W8A8Weights:
    """Pack codes [n, k] of -128..127 and scales [n]."""
    native, (n, k) = load(), codes.shape
    byte_count = native.w8a8_gemm_packed_bytes(n, k)
    raise_if(1 if byte_count < 0 else 0)
    expect("scales", scales.shape, (n,))
    codes, scales = np.ascontiguousarray(codes, np.int8), np.ascontiguousarray(scales, np.float32)
    pages = PackedWeights(byte_count)
    raise_if(native.w8a8_gemm_pack(codes.ctypes.data, scales.ctypes.data, n, k, pages.address))
    return W8A8Weights(pages, n, k)


def run_w4a8(x: NDArray[np.generic], weights: W4A8Weights, call: Call = BEST) -> NDArray[np.generic]:
    """Return x [m, k] · wᵀ as [m, n]; every row of x gets its own int8 scale."""
    native, w = weights.pages.native, weights
    scratch_bytes = native.w4a8_gemm_workspace_bytes(len(x), w.k, w.group)

    def run(source: int, x_dtype: int, out: int, out_dtype: int, scratch: int) -> int:
        return int(
            native.w4a8_gemm_run(
                call.isa, source, x_dtype, w.pages.address, out, out_dtype, len(x), w.n, w.k, w.group, w.asymmetric,
                call.threads, scratch,
            )
        )  # fmt: skip

    return run_call(x, w, call, scratch_bytes, run)


def run_w8a8(
    x: NDArray[np.generic], weights: W8A8Weights, call: Call = BEST, static_scale: float | None = None
) -> NDArray[np.generic]:
    """Return x [m, k] · wᵀ as [m, n]; rows of x get their own int8 scales, or all the given one."""
    if static_scale is not None and not 0 < static_scale < float("inf"):
        raise_if(4)
    native, w = weights.pages.native, weights
    scratch_bytes = native.w8a8_gemm_workspace_bytes(len(x), w.k)

    def run(source: int, x_dtype: int, out: int, out_dtype: int, scratch: int) -> int:
        return int(
            native.w8a8_gemm_run(
                call.isa, source, x_dtype, w.pages.address, out, out_dtype, len(x), w.n, w.k, static_scale or 0.0,
                call.threads, scratch,
            )
        )  # fmt: skip

    return run_call(x, w, call, scratch_bytes, run)
