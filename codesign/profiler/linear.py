"""Linear layers carried out by a library's kernel: weights packed once, torch tensors in and out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase, Kernel
from codesign.profiler.libraries import CPU_LIBRARIES
from codesign.profiler.libraries.adapter import GemmRow, Library, kernels_of, stored_bytes
from codesign.profiler.reference import ROUNDINGS
from codesign.profiler.weights import Float32, Weights, quantize
from codesign.schemes.catalog import parse_scheme

Linear = Callable[[Any], Any]
# How a packed kernel is called on a torch tensor [m, k]; given what the library's `feed` made for these sizes.
Caller = Callable[[GemmRow, Any, Any, Any], Any]


@dataclass(frozen=True, slots=True)
class LinearKernel:
    """A library's kernel of which a linear layer can be made."""

    library: Library
    row: GemmRow
    kernel: Kernel

    def refuses(self, case: GemmCase) -> str | None:
        """Return why it cannot be a layer of these sizes, None if it can."""
        activations = parse_scheme(self.row.scheme).activations
        if activations.granularity is not None and not activations.dynamic:
            return "it takes activations that are quantized already, so that it is no whole linear layer"
        return self.kernel.refuses(case)

    def quantized(self, w: Float32) -> Weights:
        """Return the weights [n, k] as the kernel keeps them."""
        return quantize(w, parse_scheme(self.row.scheme), self.row.scale_precision)

    def layer(self, weights: Weights, case: GemmCase) -> Linear:
        """Return a layer with packed weights; it takes a tensor [case.m, k] and gives [case.m, n] of the same type."""
        row = self.row
        fed = row.feed(np.zeros((case.m, case.k), np.float32), case)
        packed = row.pack(weights, fed, case)
        caller = CALLERS.get(self.library.name, _call_torch)
        return lambda x: caller(row, x, packed, fed)

    def plain(self, weights: Weights, dtype: Any) -> Linear:
        """Return a layer of plain torch in a float type, which rounds activations as the kernel does."""
        import torch

        w = torch.from_numpy(weights.dequantized()).to(dtype)
        rounding = ROUNDINGS[self.row.rounding]
        if self.row.rounding == "none":
            return lambda x: torch.nn.functional.linear(x.to(dtype), w).to(x.dtype)
        return lambda x: torch.nn.functional.linear(_rounded(x, rounding).to(dtype), w).to(x.dtype)

    def read_bytes(self, weights: Weights) -> float:
        """Return the bytes that one call reads of the weights."""
        return stored_bytes(weights, parse_scheme(self.row.scheme).weights.bits, self.row.scale_bytes)


def _rounded(x: Any, rounding: Callable[[Float32], Any]) -> Any:
    import torch

    return torch.from_numpy(rounding(x.float().numpy()))


def _call_torch(row: GemmRow, x: Any, packed: Any, fed: Any) -> Any:
    return row.call(x.to(fed.dtype), packed).to(x.dtype)


def _call_own(row: GemmRow, x: Any, packed: Any, fed: Any) -> Any:
    import torch

    bits = x.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return torch.from_numpy(row.call((bits, *fed[1:]), packed)).view(torch.bfloat16).to(x.dtype)


def _call_onnxruntime(row: GemmRow, x: Any, packed: Any, fed: Any) -> Any:
    import torch

    fed[0].update_inplace(x.float().contiguous().numpy())
    return torch.from_numpy(row.output(row.call(fed, packed))).to(x.dtype)


def _call_openvino(row: GemmRow, x: Any, packed: Any, fed: Any) -> Any:
    import torch

    fed.data[:] = x.float().numpy()
    return torch.from_numpy(row.output(row.call(fed, packed))).to(x.dtype)


# Libraries that take no torch tensors; the last two also fix the number of rows when they pack.
CALLERS: Mapping[str, Caller] = MappingProxyType(
    {"codesign": _call_own, "onnxruntime": _call_onnxruntime, "openvino": _call_openvino}
)
FIXED_ROWS = frozenset({"onnxruntime", "openvino"})


def linear_kernels(libraries: tuple[Library, ...] = CPU_LIBRARIES) -> tuple[LinearKernel, ...]:
    """Return every kernel of the libraries that multiplies."""
    return tuple(
        LinearKernel(library, row, kernel)
        for library in libraries
        for row, kernel in zip(library.gemms, kernels_of(library), strict=False)
    )
