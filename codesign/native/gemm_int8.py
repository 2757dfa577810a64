"""Our W4A8 and W8A8 kernels on numpy arrays: weights packed once, activations rounded to int8 inside each call."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codesign.errors import CapabilityError, InputError
from codesign.native import load
from codesign.native.packed import PackedWeights

BEST_ISA = -1
FLOAT32, BFLOAT16 = 0, 1

_DTYPES = {np.dtype(np.float32): FLOAT32, np.dtype(np.uint16): BFLOAT16}
_DTYPE_SENTENCE = "activations must be float32, or bfloat16 as uint16"
_ERRORS: dict[int, tuple[type[InputError | CapabilityError], str]] = {
    1: (InputError, "m and n must be at least 1, k a multiple of 32 up to 131072, the group 0, 32, 64 or 128"),
    2: (CapabilityError, "this processor or this build lacks that kernel variant; -1 takes the best one here"),
    3: (InputError, _DTYPE_SENTENCE),
    4: (InputError, "the static activation scale must be a positive number"),
}
_scratch = threading.local()


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


@dataclass(frozen=True, slots=True)
class Call:
    """How to run: kernel variant, threads, and whether the outputs are bfloat16 (as uint16) instead of float32."""

    isa: int = BEST_ISA
    threads: int = 1
    bfloat16: bool = False


def pack_w4a8(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, group: int
) -> W4A8Weights:
    """Pack codes [n, k] of 0..15, scales and zero points [n, groups]; without zero points w = scale · (code − 8)."""
    native, (n, k) = load(), codes.shape
    byte_count = native.w4a8_gemm_packed_bytes(n, k, group, zeros is not None)
    _raise_if(1 if byte_count < 0 else 0)
    groups = -(-k // group) if group else 1
    _expect("scales", scales.shape, (n, groups))
    if zeros is not None:
        _expect("zero points", zeros.shape, (n, groups))
        zeros = np.ascontiguousarray(zeros, np.uint8)
    codes, scales = np.ascontiguousarray(codes, np.uint8), np.ascontiguousarray(scales, np.float32)
    pages = PackedWeights(byte_count)
    zeros_address = 0 if zeros is None else zeros.ctypes.data
    _raise_if(native.w4a8_gemm_pack(codes.ctypes.data, scales.ctypes.data, zeros_address, n, k, group, pages.address))
    return W4A8Weights(pages, n, k, group, zeros is not None)


def pack_w8a8(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> W8A8Weights:
    """Pack codes [n, k] of -128..127 and scales [n]."""
    native, (n, k) = load(), codes.shape
    byte_count = native.w8a8_gemm_packed_bytes(n, k)
    _raise_if(1 if byte_count < 0 else 0)
    _expect("scales", scales.shape, (n,))
    codes, scales = np.ascontiguousarray(codes, np.int8), np.ascontiguousarray(scales, np.float32)
    pages = PackedWeights(byte_count)
    _raise_if(native.w8a8_gemm_pack(codes.ctypes.data, scales.ctypes.data, n, k, pages.address))
    return W8A8Weights(pages, n, k)


def run_w4a8(x: NDArray[np.generic], weights: W4A8Weights, call: Call = Call()) -> NDArray[np.generic]:
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

    return _run(x, w, call, scratch_bytes, run)


def run_w8a8(
    x: NDArray[np.generic], weights: W8A8Weights, call: Call = Call(), static_scale: float | None = None
) -> NDArray[np.generic]:
    """Return x [m, k] · wᵀ as [m, n]; rows of x get their own int8 scales, or all the given one."""
    if static_scale is not None and not 0 < static_scale < float("inf"):
        _raise_if(4)
    native, w = weights.pages.native, weights
    scratch_bytes = native.w8a8_gemm_workspace_bytes(len(x), w.k)

    def run(source: int, x_dtype: int, out: int, out_dtype: int, scratch: int) -> int:
        return int(
            native.w8a8_gemm_run(
                call.isa, source, x_dtype, w.pages.address, out, out_dtype, len(x), w.n, w.k, static_scale or 0.0,
                call.threads, scratch,
            )
        )  # fmt: skip

    return _run(x, w, call, scratch_bytes, run)


def _run(
    x: NDArray[np.generic],
    weights: W4A8Weights | W8A8Weights,
    call: Call,
    scratch_bytes: int,
    run: Callable[[int, int, int, int, int], int],
) -> NDArray[np.generic]:
    """Check x, make room for the outputs and the scratch memory, and run."""
    _expect("activations", x.shape, (len(x), weights.k))
    x_dtype = _DTYPES.get(x.dtype)
    if x_dtype is None:
        raise InputError(_DTYPE_SENTENCE)
    x = np.ascontiguousarray(x)
    out = np.empty((len(x), weights.n), np.uint16 if call.bfloat16 else np.float32)
    address_of = weights.pages.native.address_of
    scratch = _scratch_address(scratch_bytes)
    _raise_if(run(address_of(x), x_dtype, address_of(out), BFLOAT16 if call.bfloat16 else FLOAT32, scratch))
    return out


def _scratch_address(byte_count: int) -> int:
    """Return where this thread's scratch memory is; it is kept, because fresh memory costs a page fault every 4 KiB."""
    kept: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if kept is None or len(kept) < byte_count:
        kept = _scratch.memory = np.empty(byte_count, np.uint8)
        _scratch.address = load().address_of(kept)
    address: int = _scratch.address
    return address


def _expect(what: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if given != wanted:
        raise InputError(f"{what} have the shape {given}; {wanted} is needed")


def _raise_if(error_number: int) -> None:
    if error_number:
        kind, sentence = _ERRORS[error_number]
        raise kind(sentence)
