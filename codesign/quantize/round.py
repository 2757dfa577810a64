"""Weights rounded to nearest, in every scheme whose values are rounded one by one. For GGUF blocks see `gguf`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.numbers import codec_of
from codesign.quantize.scales import Scales, nearest_scales, needs_whole_matrix, scale_dtype
from codesign.quantize.tiles import Tile, from_tiles, in_tiles, over_tiles, stored_matrix, tile_of
from codesign.schemes.scheme import PerTensor, Scheme

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_VALUES = 1 << 18  # float32 values: 1 MiB, which stays in the second-level cache between operations
_NAMED_ROWS = 5


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight matrix [n, k] in a scheme: codes [n, k], the scales of tiles, and how columns were ordered.

    `scales` is None where the scheme has none: then `codes` are the values in the type of the scheme.
    `group_of` [k] says which group a column belongs to where groups are not neighbours (GPTQ's g_idx).
    """

    codes: "Tensor"
    scales: Scales | None
    scheme: Scheme
    group_of: "Tensor | None" = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, k)."""
        n, k = self.codes.shape
        return int(n), int(k)

    @property
    def zero_points(self) -> "Tensor | None":
        """Return the zero points of the tiles, where there are."""
        return None if self.scales is None else self.scales.zero_points

    @property
    def tile(self) -> Tile:
        """Return what shares a scale."""
        return tile_of(self.scheme.weights, *self.shape)

    def dequantize(self) -> "Tensor":
        """Return the float32 values [n, k] that the codes stand for."""
        if self.scales is None:
            return self.codes.float()
        codec = codec_of(self.scheme.weights)
        factors, zero_points = self.scales.effective(), self.scales.zero_points
        if self.group_of is not None:
            points = None if zero_points is None else zero_points[:, self.group_of]
            return codec.decode(self.codes, points) * factors[:, self.group_of]
        stored = stored_matrix(self.codes, self.scheme.weights)
        tiles = in_tiles(stored, self.tile)
        points = None if zero_points is None else over_tiles(zero_points)
        values = codec.decode(tiles, points).mul_(over_tiles(factors))
        n, k = self.shape
        whole = from_tiles(values, *stored.shape)
        return whole.reshape(-1)[: n * k].reshape(n, k)


def quantize_weight(w: "Tensor", scheme: Scheme, *, scales: Scales | None = None) -> QuantizedWeight:
    """Return the floats [n, k] rounded to nearest; scales come from the extremes of each tile unless they are given.

    Ties go to even, for tables of levels to the lower one. The last group of a row may be shorter. 16-bit scales have
    the type of `w`, and fp16 if that is float32. Does not modify `w`.
    """
    check_matrix(w)
    if scheme.family == "gguf":
        raise InputError(f"{scheme} stores whole blocks, not values with a scale; use codesign.quantize.gguf.")
    if not scheme.quantized:
        return QuantizedWeight(_converted(w, scheme), None, scheme)
    weights = scheme.weights
    matrix, tile = stored_matrix(w, weights), tile_of(weights, *w.shape)
    if scales is None and needs_whole_matrix(weights):
        check_finite(w)
        scales = nearest_scales(in_tiles(matrix.float(), tile), weights, scale_dtype(weights, w))
    elif scales is not None:
        check_finite(w)
    codes, chosen = _rounded(matrix, scheme, tile, scales)
    if not bool(chosen.effective().isfinite().all()):
        check_finite(w)
    n, k = w.shape
    return QuantizedWeight(codes.reshape(-1)[: n * k].reshape(n, k), chosen, scheme)


def quantize_group(weights: Sequence["Tensor"], scheme: Scheme) -> tuple[QuantizedWeight, ...]:
    """Return the matrices of a fused group rounded to nearest; where a scheme has a scale of the tensor they share it.

    vLLM merges them into one matrix, which has one such scale. Source: compressed-tensors, generate_gparam, of the
    largest magnitude of all.
    """
    import torch

    return split_rows(quantize_weight(torch.cat(tuple(weights)), scheme), [len(w) for w in weights])


def split_rows(weight: QuantizedWeight, row_counts: Sequence[int]) -> tuple[QuantizedWeight, ...]:
    """Return the matrices that were rounded as one below each other; the scale of the whole stays that of each."""
    scales, tile, format_ = weight.scales, weight.tile, weight.scheme.weights
    all_codes = weight.codes.split(list(row_counts))
    if scales is None or isinstance(format_.granularity, PerTensor):
        return tuple(replace(weight, codes=codes) for codes in all_codes)
    if format_.flattened or any(first % tile.rows for first in accumulate(row_counts[:-1])):
        raise InputError(f"{weight.scheme} has scales over the border of two matrices; round each by itself.")
    tile_rows = [-(-rows // tile.rows) for rows in row_counts]
    stored = scales.stored.split(tile_rows)
    points = scales.zero_points.split(tile_rows) if scales.zero_points is not None else [None] * len(stored)
    return tuple(
        replace(weight, codes=codes, scales=replace(scales, stored=own, zero_points=own_points))
        for codes, own, own_points in zip(all_codes, stored, points, strict=True)
    )


def _rounded(matrix: "Tensor", scheme: Scheme, tile: Tile, given: Scales | None) -> tuple["Tensor", Scales]:
    """Return codes and scales, worked out so many rows at a time that the copies stay in the caches."""
    codec, dtype = codec_of(scheme.weights), scale_dtype(scheme.weights, matrix)
    per_tensor = given is not None and given.stored.numel() == 1
    effective = None if given is None else given.effective()
    unit = 1 if per_tensor else tile.rows
    step = max(_CHUNK_VALUES // matrix.shape[1] // unit, 1) * unit
    codes, found = matrix.new_empty(0), []
    for first in range(0, len(matrix), step):
        part = matrix[first : first + step]
        tiles = in_tiles(part.float(), Tile(len(part), tile.columns) if per_tensor else tile)
        if given is None or effective is None:
            scales = nearest_scales(tiles, scheme.weights, dtype)
            found.append(scales)
            factors, points = scales.effective(), scales.zero_points
        else:
            rows = slice(None) if per_tensor else slice(first // unit, -(-(first + step) // unit))
            factors, points = effective[rows], None if given.zero_points is None else given.zero_points[rows]
        here = codec.encode(tiles / over_tiles(factors), None if points is None else over_tiles(points))
        codes = codes if first else matrix.new_empty(matrix.shape, dtype=here.dtype)
        codes[first : first + step] = from_tiles(here, *part.shape)
    return codes, given or _joined(found)


def _joined(parts: list[Scales]) -> Scales:
    import torch

    points = [part.zero_points for part in parts if part.zero_points is not None]
    return Scales(torch.cat([part.stored for part in parts]), torch.cat(points) if points else None)


def _converted(w: "Tensor", scheme: Scheme) -> "Tensor":
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[scheme.weights.number]
    converted = w.to(dtype)
    check_finite(converted, f"The weight in {scheme}")
    return converted


def check_matrix(w: "Tensor") -> None:
    """Refuse anything but a matrix of floats with at least one value."""
    if w.ndim != 2 or w.numel() == 0 or not w.is_floating_point():
        shape = "x".join(str(size) for size in w.shape)
        raise InputError(
            f"A weight is a matrix [n, k] of floats with at least one value, not {shape or 'one'} {w.dtype}."
        )


def check_finite(w: "Tensor", what: str = "The weight") -> None:
    """Refuse NaN and Inf, naming the rows that have them."""
    bad = ~w.isfinite()
    if not bool(bad.any()):
        return
    rows = bad.any(dim=1).nonzero()[:, 0].tolist()
    named = ", ".join(str(row) for row in rows[:_NAMED_ROWS]) + (" ..." if len(rows) > _NAMED_ROWS else "")
    nan, inf = int(w.isnan().sum()), int(w.isinf().sum())
    raise InputError(
        f"{what} has {nan} NaN and {inf} infinite values, in {len(rows)} of {len(w)} rows ({named}). "
        "Check the checkpoint: it is damaged or was written from a training that diverged."
    )


@dataclass(frozen=True, slots=True)
class DeadChannels:
    """Outputs [n] and inputs [k] of a weight matrix whose weights are all zero."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def dead_channels(w: "Tensor") -> DeadChannels:
    """Return the rows and columns of zeros: they round exactly, but often mean a pruned or damaged checkpoint."""
    used = w != 0
    rows, columns = (~used.any(dim=dim) for dim in (1, 0))
    return DeadChannels(tuple(rows.nonzero()[:, 0].tolist()), tuple(columns.nonzero()[:, 0].tolist()))
