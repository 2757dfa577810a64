"""Multiplying up to 64 rows with quantized weights on a GPU."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codesign.errors import InputError
from codesign.gpu import layout
from codesign.gpu.launch import Gpu, Launch
from codesign.gpu.program import Program, program

ROWS_MAX = 64
TILE_ROWS = 8
K_MULTIPLE = 32
GROUPS = (0, 32, 64, 128)
WARPS, LANES = 8, 32
# Tiles of outputs and warps across them by tiles of rows: more rows are read once for more outputs.
ACROSS = {1: (1, 1), 2: (2, 2), 4: (2, 4), 8: (2, 4)}
BLOCKS_PER_MULTIPROCESSOR = {1: 3, 2: 2, 4: 1, 8: 1}  # that registers leave room for, by tiles of rows

Kind = Literal["int4", "int8", "e4m3"]
CODE_OF_ZERO = {"int4": 8, "int8": 128, "e4m3": 0}


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a multiplication is cut: tiles of 8 rows, tiles of 16 outputs per warp, warps across, parts of k."""

    m_tiles: int
    n_tiles: int
    n_warps: int
    parts: int

    @property
    def outputs(self) -> int:
        """Return the outputs of a block."""
        return self.n_tiles * self.n_warps * layout.TILE_OUTPUTS

    @property
    def macros(self) -> dict[str, int]:
        """Return what a kernel is compiled with."""
        return {"m_tiles": self.m_tiles, "n_tiles": self.n_tiles, "n_warps": self.n_warps}

    @property
    def shared_bytes(self) -> int:
        """Return what the sums of all warps but the first across take."""
        return (WARPS - self.n_warps) * self.m_tiles * self.n_tiles * 4 * LANES * 4


def tiling(m: int, n: int, k: int, multiprocessors: int) -> Tiling:
    """Return the cut for m rows: blocks of more outputs read the activations less often, parts fill the machine."""
    m_tiles = next(tiles for tiles in ACROSS if tiles * TILE_ROWS >= m)
    n_tiles, n_warps = ACROSS[m_tiles]
    whole = Tiling(m_tiles, n_tiles, n_warps, parts=1)
    blocks = layout.padded(n, layout.OUTPUT_MULTIPLE) // whole.outputs
    parts = round(BLOCKS_PER_MULTIPROCESSOR[m_tiles] * multiprocessors / blocks)
    return replace(whole, parts=max(1, min(parts, layout.chunks_of(k) * n_warps // WARPS)))


@dataclass(frozen=True, slots=True)
class GpuWeights:
    """Packed weights on a GPU; `k` inputs, `n` outputs, `group` 0 where an output has one scale."""

    kind: Kind
    n: int
    k: int
    group: int
    codes: Any
    halves: Any
    zeros: Any
    factors: Any


def pack_weight_only(
    kind: Kind,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    group: int,
    device: Any,
) -> GpuWeights:
    """Return codes [n, k], scales and perhaps zero points [n, groups] as the kernels read them.

    int4: codes below 16, counted from 8 where there are no zero points. int8: bytes counted from 128. e4m3: its bytes.
    InputError for shapes that no kernel takes, and for e4m3 codes that are NaN.
    """
    n, k = codes.shape
    if k % K_MULTIPLE or group not in GROUPS:
        raise InputError(f"k = {k}, group {group}: k must be a multiple of 32, the group one of 0, 32, 64 and 128.")
    if scales.shape != (n, -(-k // group) if group else 1):
        raise InputError(f"scales of shape {scales.shape} do not fit to [{n}, {k}] weights in groups of {group or k}.")
    if kind == "e4m3" and np.any(codes & 0x7F == 0x7F):
        raise InputError("a weight is NaN; look at the layer with `codesign errors`.")
    packed = layout.pack_scales(scales, k, group)
    middle = zeros[:, -1] if zeros is not None else CODE_OF_ZERO[kind]
    whole = layout.filled(codes, middle, group)
    words = layout.pack_nibbles(whole) if kind == "int4" else layout.pack_bytes(whole)
    points = None if zeros is None else on_device(layout.pack_zeros(zeros, k, group), device)
    return GpuWeights(
        kind, n, k, group, on_device(words.view(np.int32), device), on_device(packed.halves, device), points,
        on_device(packed.factors, device),
    )  # fmt: skip


def on_device(values: NDArray[Any], device: Any) -> Any:
    """Return a tensor of the values."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def weight_only_program(weights: GpuWeights, bfloat: bool, cut: Tiling) -> Program:
    """Return the unit that multiplies such weights in such a cut."""
    common = {"bfloat": bfloat, "group": weights.group, **cut.macros}
    if weights.kind == "int4":
        return program("w4a16_gemm", zeros=weights.zeros is not None, **common)
    return program("w8a16_gemm", e4m3=weights.kind == "e4m3", **common)


def multiply_weight_only(gpu: Gpu, x: Any, weights: GpuWeights, workspace: "Workspace") -> Any:
    """Return x[m, k] · wᵀ in x's dtype, float16 or bfloat16, for up to 64 rows; InputError beyond."""
    import torch

    m, n, k = checked_rows(x, weights.k, ROWS_MAX), weights.n, weights.k
    cut = tiling(m, n, k, gpu.multiprocessors)
    bfloat = x.dtype == torch.bfloat16
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    partial, arrived = workspace.of(cut, m, n)
    gpu.launch(
        Launch(weight_only_program(weights, bfloat, cut), "weight_only", _grid(cut, n), WARPS * LANES,
               cut.shared_bytes),
        (weights.codes, weights.halves, weights.zeros, weights.factors, x, out, partial, arrived, m, n, k),
    )  # fmt: skip
    return out


def checked_rows(x: Any, k: int, rows_max: int | None = None) -> int:
    """Return the rows of activations [m, k]; InputError if they are too many, or not contiguous numbers of 16 bits."""
    import torch

    if x.dim() != 2 or x.shape[1] != k or not 1 <= x.shape[0] <= (rows_max or x.shape[0]):
        wanted = f"1 to {rows_max} rows" if rows_max else "rows"
        raise InputError(f"activations of shape {tuple(x.shape)}: {wanted} of {k} are wanted.")
    if x.dtype not in (torch.float16, torch.bfloat16) or not x.is_contiguous():
        raise InputError("activations must be contiguous float16 or bfloat16.")
    rows: int = x.shape[0]
    return rows


def _grid(cut: Tiling, n: int) -> tuple[int, int, int]:
    return layout.padded(n, layout.OUTPUT_MULTIPLE) // cut.outputs, cut.parts, 1


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """Packed signed 8-bit weights with a scale per output."""

    n: int
    k: int
    codes: Any
    scales: Any


def pack_w8a8(codes: NDArray[np.int8], scales: NDArray[np.float32], device: Any) -> Int8Weights:
    """Return codes [n, k] and scales [n] as the kernel reads them."""
    n, k = codes.shape
    full = np.zeros(layout.padded(n, layout.OUTPUT_MULTIPLE), np.float32)
    full[:n] = scales
    return Int8Weights(n, k, on_device(layout.pack_int8(codes).view(np.int32), device), on_device(full, device))


def multiply_w8a8(gpu: Gpu, x: Any, weights: Int8Weights, workspace: "Workspace") -> Any:
    """Return x · wᵀ with each row of x rounded to 8 bits, in x's dtype, for up to 64 rows."""
    import torch

    m, n, k = checked_rows(x, weights.k, ROWS_MAX), weights.n, weights.k
    cut = tiling(m, n, k, gpu.multiprocessors)
    unit = program("w8a8_gemm", bfloat=x.dtype == torch.bfloat16, **cut.macros)
    codes = torch.empty((m, layout.padded(k, layout.CHUNK)), dtype=torch.int8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    gpu.launch(Launch(unit, "round_rows", (m, 1, 1), WARPS * LANES, WARPS * 4), (x, codes, scales, k))
    gpu.launch(
        Launch(unit, "w8a8", _grid(cut, n), WARPS * LANES, cut.shared_bytes),
        (weights.codes, weights.scales, codes, scales, out, *workspace.of(cut, m, n), m, n, k),
    )
    return out


class Workspace:
    """Memory for sums of blocks that share outputs, and for weights in 16 bits; it grows.

    Its counters are zero between launches.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._partial: Any = None
        self._arrived: Any = None
        self._matrix: Any = None

    def of(self, cut: Tiling, m: int, n: int) -> tuple[Any, Any]:
        """Return room for the partial sums and the counters of a cut, None where there is one part."""
        if cut.parts == 1:
            return None, None
        wide = layout.padded(n, layout.OUTPUT_MULTIPLE)
        return self.room(cut.parts * m * wide, wide // cut.outputs)

    def room(self, floats: int, counters: int) -> tuple[Any, Any]:
        """Return at least so many floats, and so many counters that are zero."""
        import torch

        if self._partial is None or self._partial.numel() < floats:
            self._partial = torch.empty(floats, dtype=torch.float32, device=self._device)
        if self._arrived is None or self._arrived.numel() < counters:
            self._arrived = torch.zeros(counters, dtype=torch.int32, device=self._device)
        return self._partial, self._arrived

    def matrix(self, n: int, k: int, dtype: Any) -> Any:
        """Return room for weights [n, k] in 16 bits, the same for every layer."""
        import torch

        if self._matrix is None or self._matrix.numel() < n * k:
            self._matrix = torch.empty(n * k, dtype=torch.int16, device=self._device)
        return self._matrix[: n * k].view(dtype).view(n, k)
