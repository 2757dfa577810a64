"""Multiplying more rows than a skinny kernel is for: our kernels change numbers, the library multiplies them.

Quantized weights are written out in 16 bits, or activations are rounded to 8 bits and the sums scaled.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.errors import InputError
from codesign.gpu import layout
from codesign.gpu.gemm import LANES, WARPS, GpuWeights, Tiling, Workspace, checked_rows, on_device, weight_only_program
from codesign.gpu.launch import Gpu, Launch
from codesign.gpu.program import program

THREADS = WARPS * LANES
INT_MM_ROWS_MIN = 17
INT_MM_MULTIPLE = 8  # of inputs and outputs
_ONE_TILE = Tiling(m_tiles=1, n_tiles=1, n_warps=1, parts=1)


def dequantize(gpu: Gpu, weights: GpuWeights, out: Any) -> Any:
    """Return `out`, contiguous float16 or bfloat16 [n, k], after writing the weights into it, each rounded once."""
    import torch

    unit = weight_only_program(weights, out.dtype == torch.bfloat16, _ONE_TILE)
    chunks_per_block = WARPS * (2 if weights.kind == "int4" else 1)
    chunks = layout.chunks_of(weights.k, weights.group)
    tiles = layout.padded(weights.n, layout.OUTPUT_MULTIPLE) // layout.TILE_OUTPUTS
    gpu.launch(
        Launch(unit, "dequantize", (tiles, -(-chunks // chunks_per_block), 1), THREADS, 0),
        (weights.codes, weights.halves, weights.zeros, weights.factors, out, weights.n, weights.k),
    )
    return out


def multiply_dequantized(gpu: Gpu, x: Any, weights: GpuWeights, workspace: Workspace) -> Any:
    """Return x[m, k] · wᵀ in x's dtype: the weights are written into the workspace, the library multiplies."""
    checked_rows(x, weights.k)
    return x @ dequantize(gpu, weights, workspace.matrix(weights.n, weights.k, x.dtype)).t()


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """Signed 8-bit weights as a library takes them: codes [n, k filled up to 64s], a scale per output."""

    n: int
    k: int
    codes: Any
    scales: Any


def pack_int8_rows(codes: NDArray[np.int8], scales: NDArray[np.float32], device: Any) -> Int8Rows:
    """Return codes [n, k] and scales [n] for `multiply_rounded`; InputError where n is no multiple of 8."""
    n, k = codes.shape
    if n % INT_MM_MULTIPLE:
        raise InputError(f"n = {n}: the library's product of 8-bit integers takes multiples of {INT_MM_MULTIPLE}.")
    full = np.zeros((n, layout.padded(k, layout.CHUNK)), np.int8)
    full[:, :k] = codes
    return Int8Rows(n, k, on_device(full, device), on_device(scales.astype(np.float32), device))


def multiply_rounded(gpu: Gpu, x: Any, weights: Int8Rows) -> Any:
    """Return x · wᵀ with each row of x rounded to 8 bits, in x's dtype, for 17 rows or more."""
    import torch

    m = checked_rows(x, weights.k)
    if m < INT_MM_ROWS_MIN:
        raise InputError(f"{m} rows: the library's product of 8-bit integers takes {INT_MM_ROWS_MIN} or more.")
    unit = program("w8a8_gemm", bfloat=x.dtype == torch.bfloat16, **_ONE_TILE.macros)
    codes = torch.empty((m, weights.codes.shape[1]), dtype=torch.int8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    out = torch.empty((m, weights.n), dtype=x.dtype, device=x.device)
    gpu.launch(Launch(unit, "round_rows", (m, 1, 1), THREADS, WARPS * 4), (x, codes, scales, weights.k))
    sums = torch._int_mm(codes, weights.codes.t())
    blocks = -(-weights.n // (INT_MM_MULTIPLE * THREADS))
    gpu.launch(Launch(unit, "scale_sums", (m, blocks, 1), THREADS, 0), (sums, scales, weights.scales, out, weights.n))
    return out
