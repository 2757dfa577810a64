"""Our W4A16 and W8A16 kernels on numpy arrays: weights packed once, activations of 16 or 32 bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codesign.native import load
from codesign.native.call import BEST, Call, grouped_arrays, raise_if, run_call
from codesign.native.packed import PackedWeights

Bits = Literal[4, 8]


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
    raise_if(0 if byte_count else 1)
    arrays = grouped_arrays(codes, scales, zeros, group)
    pages = PackedWeights(byte_count)
    raise_if(_function(bits, "pack")(*arrays.addresses, pages.address, n, k, group))
    return WeightOnly(pages, bits, n, k, group, zeros is not None)


def run_weight_only(x: NDArray[np.generic], weights: WeightOnly, call: Call = BEST) -> NDArray[np.generic]:
    """Return x [m, k] · wᵀ as [m, n]; x is float32, or bfloat16 as uint16."""
    w, m, native_run = weights, len(x), _function(weights.bits, "run")
    scratch_bytes = _function(w.bits, "workspace_bytes")(m, w.n, w.k, w.group, call.threads)

    def run(source: int, x_dtype: int, out: int, out_dtype: int, scratch: int) -> int:
        return native_run(
            call.isa, source, x_dtype, w.pages.address, out, out_dtype, m, w.n, w.k, w.group, w.asymmetric,
            call.threads, scratch,
        )  # fmt: skip

    return run_call(x, w, call, scratch_bytes, run)


def _function(bits: Bits, name: str) -> Callable[..., int]:
    found: Callable[..., int] = getattr(load(), f"w{bits}a16_gemm_{name}")
    return found
