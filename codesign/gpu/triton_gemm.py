"""Multiplying 16 to 256 rows with 4-bit weights by a kernel in Triton, over the layout of our CUDA kernels."""

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

from codesign.errors import CapabilityError, InputError
from codesign.gpu import layout
from codesign.gpu.gemm import GpuWeights, checked_rows
from codesign.gpu.program import kernel_folder

ROWS_MIN, ROWS_MAX = 16, 256
STAGES = 4
_ROWS = (16, 32, 64, 128)
_WIDE, _NARROW = 4, 2  # tiles of 16 outputs


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a block computes: rows and tiles of 16 outputs, chunks of 64 inputs per turn, with so many warps."""

    rows: int
    tiles: int
    chunks: int
    warps: int


def blocks(m: int, n: int, multiprocessors: int) -> Blocks:
    """Return blocks that unpack each weight once for up to 128 rows, narrow ones where wide ones leave a GPU idle."""
    rows = next((rows for rows in _ROWS if rows >= m), _ROWS[-1])
    wide = layout.padded(n, layout.OUTPUT_MULTIPLE) // (_WIDE * layout.TILE_OUTPUTS) * -(-m // rows)
    tiles = _WIDE if 4 * wide >= 3 * multiprocessors else _NARROW
    return Blocks(rows, tiles, chunks=1 if rows == _ROWS[-1] else 2, warps=8 if rows == _ROWS[-1] else 4)


def multiply_by_triton(x: Any, weights: GpuWeights, multiprocessors: int) -> Any:
    """Return x[m, k] · wᵀ in half precision; InputError for other numbers than halves and 4-bit weights."""
    import torch

    m, n, k, group = checked_rows(x, weights.k, ROWS_MAX), weights.n, weights.k, weights.group
    if weights.kind != "int4" or x.dtype != torch.float16:
        raise InputError(f"{weights.kind} weights, {x.dtype}: the Triton kernel is for int4 weights and float16.")
    cut = blocks(m, n, multiprocessors)
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    outputs = cut.tiles * layout.TILE_OUTPUTS
    _kernel()[(layout.padded(n, layout.OUTPUT_MULTIPLE) // outputs, -(-m // cut.rows))](
        x, weights.codes, weights.halves, weights.zeros, weights.factors, out, m, n, k,
        layout.chunks_of(k, group), layout.groups_of(k, group),
        GROUP=group, HAS_ZEROS=weights.zeros is not None, BLOCK_M=cut.rows, TILES=cut.tiles, CHUNKS=cut.chunks,
        num_warps=cut.warps, num_stages=STAGES, enable_fp_fusion=True,  # said, because its default is about to change
    )  # fmt: skip
    return out


def problem() -> str | None:
    """Return why the kernel cannot run here, None if Triton is installed."""
    return None if importlib.util.find_spec("triton") else "triton is not installed; pip install triton"


@functools.cache
def _kernel() -> Any:
    if reason := problem():
        raise CapabilityError(reason)
    path = kernel_folder() / "w4a16_gemm" / "triton.py"
    spec = importlib.util.spec_from_file_location("codesign_w4a16_gemm_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.multiply
