"""Our W4A16 and W8A16 kernels on numpy arrays: weights packed once, activations of 16 or 32 bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codesign.errors import CapabilityError, InputError
from codesign.native import load
from codesign.native.gemm_int8 import BFLOAT16, FLOAT32, Call
from codesign.native.packed import PackedWeights

Bits = Literal[4, 8]

_BEST = Call()
_DTYPES = {np.dtype(np.float32): FLOAT32, np.dtype(np.uint16): BFLOAT16}
_ERRORS: dict[int, tuple[type[InputError | CapabilityError], str]] = {
    1: (InputError, "m, n and threads must be at least 1, k a multiple of 32, the group 0, 32, 64 or 128"),
    2: (CapabilityError, "this processor or this build lacks that kernel variant; -1 takes the best one here"),
    3: (InputError, "activations and outputs must be float32, or bfloat16 as uint16"),
}


@dataclass(frozen=True, slots=True)
class WeightOnly:
    """Packed weights [n, k] of 4 or 8 bits; group 0 has one scale per row."""

    pages: PackedWeights
    bits: Bits
    n: int
    k: int
    group: int
    asymmetric: bool


def pack_weight_only(
    bits: Bits, codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, group: int
) -> WeightOnly:
    """Pack codes [n, k], scales and zeros [n, groups]; w = scale · (code − zero), where zeros are None 8 or 128."""
    n, k = codes.shape
    byte_count = _function(bits, "packed_bytes")(n, k, group, zeros is not None)
    _raise_if(0 if byte_count else 1)
    shape = (n, -(-k // group) if group else 1)
    _expect("scales", scales.shape, shape)
    if zeros is not None:
        _expect("zero points", zeros.shape, shape)
        zeros = np.ascontiguousarray(zeros, np.uint8)
    codes, scales = np.ascontiguousarray(codes, np.uint8), np.ascontiguousarray(scales, np.float32)
    pages = PackedWeights(byte_count)
    points = 0 if zeros is None else zeros.ctypes.data
    _raise_if(_function(bits, "pack")(codes.ctypes.data, scales.ctypes.data, points, pages.address, n, k, group))
    return WeightOnly(pages, bits, n, k, group, zeros is not None)


def run_weight_only(x: NDArray[np.generic], weights: WeightOnly, call: Call = _BEST) -> NDArray[np.generic]:
    """Return x [m, k] · wᵀ as [m, n]; x is float32, or bfloat16 as uint16."""
    w, m = weights, len(x)
    _expect("activations", x.shape, (m, w.k))
    _raise_if(0 if x.dtype in _DTYPES else 3)
    x = np.ascontiguousarray(x)
    out = np.empty((m, w.n), np.uint16 if call.bfloat16 else np.float32)
    scratch = np.empty(_function(w.bits, "workspace_bytes")(m, w.n, w.k, w.group, call.threads), np.uint8)
    error = _function(w.bits, "run")(
        call.isa, x.ctypes.data, _DTYPES[x.dtype], w.pages.address, out.ctypes.data, _DTYPES[out.dtype],
        m, w.n, w.k, w.group, w.asymmetric, call.threads, scratch.ctypes.data,
    )  # fmt: skip
    _raise_if(error)
    return out


def _function(bits: Bits, name: str) -> Callable[..., int]:
    found: Callable[..., int] = getattr(load(), f"w{bits}a16_gemm_{name}")
    return found


def _expect(what: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if given != wanted:
        raise InputError(f"{what} have the shape {given}; {wanted} is needed")


def _raise_if(error_number: int) -> None:
    if error_number:
        kind, sentence = _ERRORS[error_number]
        raise kind(sentence)
