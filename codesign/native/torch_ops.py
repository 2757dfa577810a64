"""torch.ops.codesign.linear: our GEMM kernels on torch tensors, traceable. Importing this module needs torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from codesign.errors import InputError
from codesign.native import load
from codesign.native.call import BEST_ISA, BFLOAT16, FLOAT32
from codesign.native.gemm_bf16 import WeightOnly
from codesign.native.gemm_int8 import W4A8Weights, W8A8Weights
from codesign.native.packed import PackedWeights

_DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


class _Memory:
    """Packed pages as numpy and torch see memory; the pages live as long as an array or tensor made of this."""

    def __init__(self, pages: PackedWeights) -> None:
        self._pages = pages

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "typestr": "|u1",
            "shape": (self._pages.byte_count,),
            "data": (self._pages.address, False),
        }


@dataclass(frozen=True, slots=True)
class _Shape:
    """One multiplication as the native functions take it."""

    m: int
    n: int
    k: int
    group: int
    asymmetric: bool
    threads: int


@dataclass(frozen=True, slots=True)
class _Functions:
    """A kernel's native functions, with their arguments in one order."""

    workspace_bytes: Callable[[Any, _Shape], int]
    run: Callable[[Any, tuple[int, ...], _Shape, int], int]


def _weight_only(name: str) -> _Functions:
    return _Functions(
        lambda native, s: getattr(native, f"{name}_workspace_bytes")(s.m, s.n, s.k, s.group, s.threads),
        lambda native, arrays, s, scratch: getattr(native, f"{name}_run")(
            BEST_ISA, *arrays, s.m, s.n, s.k, s.group, s.asymmetric, s.threads, scratch
        ),
    )


_KERNELS = {
    "W4A16": _weight_only("w4a16_gemm"),
    "W8A16": _weight_only("w8a16_gemm"),
    "W4A8": _Functions(
        lambda native, s: native.w4a8_gemm_workspace_bytes(s.m, s.k, s.group),
        lambda native, arrays, s, scratch: native.w4a8_gemm_run(
            BEST_ISA, *arrays, s.m, s.n, s.k, s.group, s.asymmetric, s.threads, scratch
        ),
    ),
    "W8A8": _Functions(
        lambda native, s: native.w8a8_gemm_workspace_bytes(s.m, s.k),
        lambda native, arrays, s, scratch: native.w8a8_gemm_run(
            BEST_ISA, *arrays, s.m, s.n, s.k, 0.0, s.threads, scratch
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """Packed weights as a tensor of bytes, and what torch.ops.codesign.linear has to know of them."""

    packed: torch.Tensor
    kernel: str
    n: int
    group: int
    asymmetric: bool

    def linear(self, x: torch.Tensor, threads: int = 1) -> torch.Tensor:
        """Return x [..., k] · wᵀ as [..., n], in the dtype of x."""
        out: torch.Tensor = torch.ops.codesign.linear(
            x, self.packed, self.kernel, [self.n, self.group, int(self.asymmetric)], threads
        )
        return out


def tensor_of(weights: WeightOnly | W4A8Weights | W8A8Weights) -> PackedTensor:
    """Return packed weights for torch; they share their memory with `weights`, whose pages must not be closed."""
    packed = torch.from_numpy(np.asarray(_Memory(weights.pages)))
    if isinstance(weights, W8A8Weights):
        return PackedTensor(packed, "W8A8", weights.n, 0, False)
    kernel = f"W{weights.bits}A16" if isinstance(weights, WeightOnly) else "W4A8"
    return PackedTensor(packed, kernel, weights.n, weights.group, weights.asymmetric)


def linear(x: torch.Tensor, packed: torch.Tensor, kernel: str, layout: list[int], threads: int) -> torch.Tensor:
    """Return x [..., k] · wᵀ as [..., n]; kernel W4A16, W8A16, W4A8 or W8A8; layout is n, group, asymmetric (0, 1)."""
    if kernel not in _KERNELS or x.dtype not in _DTYPES:
        raise InputError(f"no kernel {kernel} of {x.dtype}; use {', '.join(_KERNELS)} of float32 or bfloat16")
    n, group, asymmetric = layout
    x, out = x.contiguous(), x.new_empty((*x.shape[:-1], n))
    if not x.numel():
        return out.zero_()
    shape = _Shape(x.numel() // x.shape[-1], n, x.shape[-1], group, bool(asymmetric), threads)
    _check_bytes(kernel, shape, packed.numel())
    native, functions, dtype = load(), _KERNELS[kernel], _DTYPES[x.dtype]
    scratch = torch.empty(functions.workspace_bytes(native, shape), dtype=torch.uint8)
    arrays = (x.data_ptr(), dtype, packed.data_ptr(), out.data_ptr(), dtype)
    if functions.run(native, arrays, shape, scratch.data_ptr()):
        raise InputError(f"{kernel} refuses {shape}; m, n and threads must be at least 1")
    return out


def _check_bytes(kernel: str, shape: _Shape, packed_bytes: int) -> None:
    """Raise unless weights of this shape are as many bytes: the kernel would read past them."""
    arguments = (shape.n, shape.k) if kernel == "W8A8" else (shape.n, shape.k, shape.group, shape.asymmetric)
    needed = getattr(load(), f"{kernel.lower()}_gemm_packed_bytes")(*arguments)
    if needed != packed_bytes:
        raise InputError(f"{kernel} weights [{shape.n}, {shape.k}] are {needed} bytes when packed, not {packed_bytes}")


def _linear_of_fakes(
    x: torch.Tensor, packed: torch.Tensor, kernel: str, layout: list[int], threads: int
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], layout[0]))


torch.library.custom_op("codesign::linear", linear, mutates_args=(), device_types="cpu").register_fake(_linear_of_fakes)
