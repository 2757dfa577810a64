"""Weights as the kernel of a library keeps them: rounded by codesign.quantize, held as numpy arrays."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codesign.errors import CapabilityError
from codesign.quantize.numbers import SignedIntegers, UnsignedIntegers, codec_of
from codesign.quantize.round import QuantizedWeight, quantize_weight
from codesign.quantize.scales import nearest_scales
from codesign.quantize.tiles import in_tiles, stored_matrix, tile_of
from codesign.schemes.scheme import Scheme, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

Exact = NDArray[np.float64]
Float32 = NDArray[np.float32]

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Weights(Protocol):
    """A weight matrix [n, k] as a scheme stores it."""

    def dequantized(self) -> Exact:
        """Return the values that the stored ones stand for."""

    @property
    def row_count(self) -> int:
        """Return n."""

    def rolled(self, rows: int) -> "Weights":
        """Return the matrix with its rows moved down by so many, the last ones to the top."""

    def repeated(self, times: int) -> "Weights":
        """Return the matrix so many times, one below the other."""

    def part(self, rows: slice) -> "Weights":
        """Return some of the rows."""


@dataclass(frozen=True, slots=True)
class FloatWeights:
    """Weights in 16 or 32 bits without scales; `values` already have that precision."""

    values: Float32

    def dequantized(self) -> Exact:
        """Return the values in float64."""
        return self.values.astype(np.float64)

    @property
    def row_count(self) -> int:
        """Return n."""
        return len(self.values)

    def rolled(self, rows: int) -> "FloatWeights":
        """Return the matrix with its rows moved down."""
        return FloatWeights(np.roll(self.values, rows, axis=0))

    def repeated(self, times: int) -> "FloatWeights":
        """Return the matrix so many times, one below the other."""
        return FloatWeights(np.tile(self.values, (times, 1)))

    def part(self, rows: slice) -> "FloatWeights":
        """Return some of the rows."""
        return FloatWeights(self.values[rows])


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """Codes [n, k] with scales [n, groups]: value = (code - zero) x scale, or levels[code] x scale.

    `group` codes along k share a scale, the last group may be shorter. Integers without zero points are signed; with
    `zeros` [n, groups] codes and zero points count from 0.
    """

    codes: NDArray[np.int16]
    scales: Float32
    group: int
    zeros: NDArray[np.int16] | None = None
    levels: Float32 | None = None

    def dequantized(self) -> Exact:
        """Return the exact values of codes and scales."""
        if self.levels is not None:
            values: Exact = self.levels.astype(np.float64)[self.codes]
        elif self.zeros is not None:
            values = (self.codes - self.spread(self.zeros)).astype(np.float64)
        else:
            values = self.codes.astype(np.float64)
        values *= self.spread(self.scales)
        return values

    def rolled(self, rows: int) -> "QuantizedWeights":
        """Return the matrix with its rows moved down, scales and zero points with them."""
        zeros = None if self.zeros is None else np.roll(self.zeros, rows, axis=0)
        codes, scales = np.roll(self.codes, rows, axis=0), np.roll(self.scales, rows, axis=0)
        return QuantizedWeights(codes, scales, self.group, zeros, self.levels)

    def repeated(self, times: int) -> "QuantizedWeights":
        """Return the matrix so many times, one below the other, with its scales and zero points."""
        codes, scales = np.tile(self.codes, (times, 1)), np.tile(self.scales, (times, 1))
        zeros = None if self.zeros is None else np.tile(self.zeros, (times, 1))
        return QuantizedWeights(codes, scales, self.group, zeros, self.levels)

    @property
    def row_count(self) -> int:
        """Return n."""
        return len(self.codes)

    def part(self, rows: slice) -> "QuantizedWeights":
        """Return some of the rows."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return QuantizedWeights(self.codes[rows], self.scales[rows], self.group, zeros, self.levels)

    def spread(self, per_group: NDArray[Any]) -> NDArray[Any]:
        """Return one value per code from one per group."""
        return np.repeat(per_group, self.group, axis=1)[:, : self.codes.shape[1]]


def quantize(w: Float32, scheme: Scheme, scale_precision: str = "fp32") -> Weights:
    """Return the weights [n, k] in a scheme, rounded to nearest, with scales that a library keeps in that precision."""
    torch = installed_torch()
    matrix = torch.from_numpy(w)
    if not scheme.quantized:
        return FloatWeights(quantize_weight(matrix, scheme).codes.float().numpy())
    format_ = _with_plain_scales(scheme.weights)
    tiles = in_tiles(stored_matrix(matrix, format_), tile_of(format_, *w.shape))
    scales = nearest_scales(tiles, format_, getattr(torch, TORCH_NAMES[scale_precision]))
    return _arrays_of(quantize_weight(matrix, replace(scheme, weights=format_), scales=scales))


def installed_torch() -> Any:
    """Return torch, which rounds the weights of kernels and is what their outputs are checked against."""
    try:
        import torch
    except ImportError as error:
        raise CapabilityError(
            "Kernels get their weights from PyTorch and are checked against it, but it is not installed; "
            "pip install torch."
        ) from error
    return torch


def _with_plain_scales(weights: WeightFormat) -> WeightFormat:
    """Return the format without scales of scales, which no library that is measured keeps."""
    if weights.super_group_size is None:
        return weights
    return replace(weights, scale_bits=32, super_group_size=None, super_scale_bits=0.0)


def _arrays_of(weight: QuantizedWeight) -> QuantizedWeights:
    import torch

    scales, format_, tile = weight.scales, weight.scheme.weights, weight.tile
    assert scales is not None
    zeros = None if scales.zero_points is None else _per_row(scales.zero_points.short(), weight)
    codec, levels = codec_of(format_), None
    if not isinstance(codec, SignedIntegers | UnsignedIntegers):
        levels = codec.decode(torch.arange(1 << int(format_.bits), dtype=torch.uint8), None).numpy()
    return QuantizedWeights(
        weight.codes.short().numpy(), _per_row(scales.effective(), weight), tile.columns, zeros, levels
    )


def _per_row(per_tile: "Tensor", weight: QuantizedWeight) -> NDArray[Any]:
    """Return [n, groups] of what tiles have in common; groups in memory order must end with their row."""
    (n, k), tile = weight.shape, weight.tile
    if weight.scheme.weights.flattened:
        assert k % tile.columns == 0
        per_tile = per_tile.reshape(n, -1)
    rows: NDArray[Any] = np.repeat(per_tile.numpy(), tile.rows, axis=0)[:n]
    return rows
