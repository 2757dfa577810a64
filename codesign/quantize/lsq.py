"""Fake quantization: rounded forward, straight through backward, with step sizes that can be learned.

Forward gives bit by bit what `QuantizedWeight.dequantize` gives of the result, so that what was trained is what is
exported. Source: Esser et al., Learned Step Size Quantization (ICLR 2020, arXiv 1902.08153), called the paper below.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.quantize.numbers import Codec, Levels, SignedIntegers, UnsignedIntegers, codec_of
from codesign.quantize.tiles import Tile, from_tiles, in_tiles, over_tiles, stored_matrix, tile_of
from codesign.schemes.scheme import WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_VALUES = 1 << 18  # float32 values: 1 MiB, which stays in the second-level cache between operations


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a matrix is rounded: its format, what shares a step, the type of stored steps, the factor of gradients."""

    weights: WeightFormat
    tile: Tile
    step_dtype: Any
    gradient_scale: float

    @property
    def codec(self) -> Codec:
        """Return how codes are read and written."""
        return codec_of(self.weights)

    def factors(self, steps: "Tensor") -> "Tensor":
        """Return float32 steps as they are once stored."""
        return steps.to(self.step_dtype).float()


def fake_quantize(matrix: "Tensor", steps: "Tensor", zero_points: "Tensor | None", rounding: Rounding) -> "Tensor":
    """Return float32 values [n, k] rounded with steps [tile rows, tile columns]; gradients go to both.

    A value within the range of the codes passes its gradient on, one outside passes none (clipped straight-through
    estimator). With r = v / step, a step is given the sum of G (q - r) inside and of G q outside, where q is the
    level that r is rounded to (the paper, equation 3), times the gradient scale. Zero points stay as they are.
    """
    rounded: Tensor = _functions().Rounded.apply(matrix, steps, zero_points, rounding)
    return rounded


def pass_through(x: "Tensor", rounded: "Tensor") -> "Tensor":
    """Return `rounded`, whose gradient `x` gets whole: for scales that are made anew from the extremes of `x`."""
    passed: Tensor = _functions().Passed.apply(x, rounded)
    return passed


def bounds(codec: Codec) -> tuple[float, float]:
    """Return -Q_N and Q_P of the paper: the smallest and the largest of value / step, zero point added."""
    match codec:
        case SignedIntegers(bits):
            return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
        case UnsignedIntegers():
            return 0.0, codec.top
        case Levels(values):
            return min(values), max(values)
        case _:
            return -codec.top, codec.top


def gradient_scale(values_per_step: int, weights: WeightFormat) -> float:
    """Return g = 1 / sqrt(N Q_P), with which steps learn as fast as weights do (the paper, section 2.2)."""
    return 1 / math.sqrt(values_per_step * _q_p(weights))


def initial_steps(matrix: "Tensor", weights: WeightFormat) -> "Tensor":
    """Return steps [tile rows, tile columns] of 2 mean|v| / sqrt(Q_P) (the paper, section 2.1); 1 where all is 0."""
    import torch

    if not weights.symmetric:
        raise InputError(
            "The initial steps of LSQ are for values around zero; a scheme with zero points starts from rtn or gptq."
        )
    stored = stored_matrix(matrix.float(), weights)
    tile = tile_of(weights, *matrix.shape)
    counts = in_tiles(stored_matrix(torch.ones_like(matrix), weights), tile).sum(dim=(1, 3))
    means = in_tiles(stored, tile).abs().sum(dim=(1, 3)) / counts
    return torch.where(means == 0, 1.0, 2 * means / math.sqrt(_q_p(weights)))


def _q_p(weights: WeightFormat) -> float:
    return bounds(codec_of(weights))[1]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows that are rounded at a time, the rows of steps that they have, and the tile within them."""

    rows: slice
    steps: slice
    tile: Tile


def _pieces(matrix: "Tensor", tile: Tile) -> Iterator[_Piece]:
    n, k = matrix.shape
    one = tile.rows >= n
    unit = 1 if one else tile.rows
    size = max(_CHUNK_VALUES // k // unit, 1) * unit
    for first in range(0, n, size):
        last = min(first + size, n)
        if one:
            yield _Piece(slice(first, last), slice(0, 1), Tile(last - first, tile.columns))
        else:
            yield _Piece(slice(first, last), slice(first // unit, -(-last // unit)), tile)


@dataclass(frozen=True, slots=True)
class _Functions:
    Rounded: Any
    Passed: Any


@functools.cache
def _functions() -> _Functions:
    """Return the autograd functions; they are made here because torch is imported only where it is used."""
    import torch

    class Rounded(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(
            ctx: Any, matrix: "Tensor", steps: "Tensor", zero_points: "Tensor | None", rounding: Rounding
        ) -> "Tensor":
            ctx.save_for_backward(matrix, steps, zero_points)
            ctx.rounding = rounding
            return _forward(matrix, rounding.factors(steps), zero_points, rounding)

        @staticmethod
        def backward(ctx: Any, gradient: "Tensor") -> tuple["Tensor", "Tensor | None", None, None]:
            matrix, steps, zero_points = ctx.saved_tensors
            rounding = ctx.rounding
            factors = rounding.factors(steps)
            of_steps = torch.zeros_like(factors) if ctx.needs_input_grad[1] else None
            of_matrix = _backward(_Saved(matrix, factors, zero_points, gradient), of_steps, rounding)
            return of_matrix, None if of_steps is None else of_steps * rounding.gradient_scale, None, None

    class Passed(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: "Tensor", rounded: "Tensor") -> "Tensor":
            return rounded.clone()

        @staticmethod
        def backward(ctx: Any, gradient: "Tensor") -> tuple["Tensor", None]:
            return gradient, None

    return _Functions(Rounded, Passed)


def _forward(matrix: "Tensor", factors: "Tensor", zero_points: "Tensor | None", rounding: Rounding) -> "Tensor":
    import torch

    codec, out = rounding.codec, torch.empty_like(matrix)
    for piece in _pieces(matrix, rounding.tile):
        part = matrix[piece.rows]
        factor, point = _of_piece(piece, factors, zero_points)
        codes = codec.encode(in_tiles(part, piece.tile) / factor, point)
        out[piece.rows] = from_tiles(codec.decode(codes, point).mul_(factor), *part.shape)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Saved:
    """What the backward pass needs: values and gradients [n, k], factors and zero points of tiles."""

    matrix: "Tensor"
    factors: "Tensor"
    zero_points: "Tensor | None"
    gradient: "Tensor"


def _backward(saved: _Saved, of_steps: "Tensor | None", rounding: Rounding) -> "Tensor":
    """Return the gradient of the values; that of the steps, not scaled yet, is added to `of_steps`."""
    import torch

    codec, of_matrix = rounding.codec, torch.empty_like(saved.matrix)
    low, high = bounds(codec)
    inside = torch.ops.aten.hardtanh_backward  # its first argument where low < second < high, else 0, in one pass
    for piece in _pieces(saved.matrix, rounding.tile):
        part = saved.matrix[piece.rows]
        factor, point = _of_piece(piece, saved.factors, saved.zero_points)
        scaled = in_tiles(part, piece.tile) / factor
        placed = scaled if point is None else scaled + point.float()
        gradient = in_tiles(saved.gradient[piece.rows], piece.tile)
        of_matrix[piece.rows] = from_tiles(inside(gradient, placed, low, high), *part.shape)
        if of_steps is not None:
            minus = inside(scaled, placed, low, high)
            slope = codec.decode(codec.encode(scaled, point), point) - minus
            of_steps[piece.steps] += (gradient * slope).sum(dim=(1, 3))
    return of_matrix


def _of_piece(piece: _Piece, factors: "Tensor", zero_points: "Tensor | None") -> tuple["Tensor", "Tensor | None"]:
    points = None if zero_points is None else over_tiles(zero_points[piece.steps])
    return over_tiles(factors[piece.steps]), points
