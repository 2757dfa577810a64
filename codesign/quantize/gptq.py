"""GPTQ: columns are rounded one after the other, and those still to come make up for the error.

Source: Frantar et al., GPTQ, algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.errors import hessian_error
from codesign.quantize.numbers import codec_of
from codesign.quantize.round import QuantizedWeight, check_finite, check_matrix, quantize_weight, split_rows
from codesign.quantize.scales import (
    Scales,
    chosen_scales,
    least_error_scales,
    nearest_scales,
    needs_whole_matrix,
    scale_dtype,
)
from codesign.quantize.tiles import Tile, in_tiles, stored_matrix, tile_of
from codesign.schemes.scheme import PerChannel, PerGroup, Scheme

if TYPE_CHECKING:
    from torch import Tensor


_TRIANGLE = 96  # columns of a triangle that is inverted directly


@dataclass(frozen=True, slots=True)
class GptqOptions:
    """How GPTQ runs.

    `damping` is added to the diagonal as a fraction of its mean, ten times more until the matrix can be factored.
    With `act_order` columns go by falling importance and scales are those of the original groups, so that nothing about
    the order is stored; without it each group's scales are chosen when it is reached, errors made up for included.
    `clip` chooses scales for the least error, each column counting as in the error that is left in the end, instead of
    the extremes. Errors of `block` columns are passed on one by one, to all other columns by products of matrices.
    """

    damping: float = 0.01
    block: int = 32
    act_order: bool = True
    clip: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class GptqResult:
    """The rounded weights, their squared output error and that of rounding to nearest, summed over the rows."""

    weight: QuantizedWeight
    error: float
    nearest_error: float
    damping: float
    kept_nearest_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class InverseFactor:
    """The upper Cholesky factor of the inverse of the damped Hessian, its columns in the order of rounding."""

    upper: "Tensor"
    order: "Tensor"
    damping: float

    @property
    def importance(self) -> "Tensor":
        """Return [k] by what an error of each column squared counts once the columns after it made up for it."""
        import torch

        restored = torch.empty_like(self.upper[0])
        restored[self.order] = self.upper.diagonal() ** -2
        return restored


def gptq(w: "Tensor", hessian: "Tensor", scheme: Scheme, options: GptqOptions | None = None) -> GptqResult:
    """Return the weights [n, k] rounded for inputs whose X^T X is `hessian` [k, k].

    A row for which rounding to nearest errs less keeps that. Inputs that are always zero are rounded to nearest.
    """
    return gptq_group([w], hessian, scheme, options)[0]


def gptq_group(
    weights: Sequence["Tensor"], hessian: "Tensor", scheme: Scheme, options: GptqOptions | None = None
) -> list[GptqResult]:
    """Return the matrices of layers that share their input, all rounded at once where their rows have own scales."""
    import torch

    chosen = options or GptqOptions()
    for w in weights:
        _check(w, hessian, scheme)
    factor = _inverse_factor(hessian, _order(hessian, chosen), chosen.damping)
    counts = [len(w) for w in weights]
    if len(weights) == 1 or not isinstance(scheme.weights.granularity, PerGroup | PerChannel) or _nested(scheme):
        return [_result(w, hessian, _rounded(w, factor, scheme, chosen), [len(w)], factor)[0] for w in weights]
    whole = torch.cat(tuple(weights))
    return _result(whole, hessian, _rounded(whole, factor, scheme, chosen), counts, factor)


def _nested(scheme: Scheme) -> bool:
    return scheme.weights.flattened


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Weights after GPTQ, and rounded to nearest."""

    found: QuantizedWeight
    nearest: QuantizedWeight


def _rounded(w: "Tensor", factor: InverseFactor, scheme: Scheme, options: GptqOptions) -> _Pair:
    nearest = quantize_weight(w, scheme, scales=_scales(w, factor, scheme, options))
    return _Pair(_compensated(w, factor, nearest, options), nearest)


def _result(
    w: "Tensor", hessian: "Tensor", pair: _Pair, row_counts: list[int], factor: InverseFactor
) -> list[GptqResult]:
    """Return the better of both for every row, cut into the matrices of the layers."""
    exact = w.float()
    error = hessian_error(pair.found.dequantize() - exact, hessian)
    nearest_error = hessian_error(pair.nearest.dequantize() - exact, hessian)
    worse = error > nearest_error
    parts = split_rows(_with_rows(pair.found, pair.nearest, worse), row_counts) if len(row_counts) > 1 else None
    least, results, first = error.minimum(nearest_error), [], 0
    for index, count in enumerate(row_counts):
        rows = slice(first, first + count)
        results.append(
            GptqResult(
                weight=parts[index] if parts else _with_rows(pair.found, pair.nearest, worse),
                error=float(least[rows].sum()),
                nearest_error=float(nearest_error[rows].sum()),
                damping=factor.damping,
                kept_nearest_rows=int(worse[rows].sum()),
            )
        )
        first += count
    return results


def _check(w: "Tensor", hessian: "Tensor", scheme: Scheme) -> None:
    check_matrix(w)
    check_finite(w)
    k = w.shape[1]
    if tuple(hessian.shape) != (k, k):
        raise InputError(f"The Hessian is {tuple(hessian.shape)}, for {k} input channels it is ({k}, {k}).")
    check_finite(hessian, "The Hessian")
    if not scheme.quantized or scheme.family == "gguf":
        raise InputError(f"GPTQ rounds values with scales, which {scheme} has not. Use W4A16-g128 or another of those.")
    granularity = scheme.weights.granularity
    if scheme.weights.flattened and isinstance(granularity, PerGroup) and k % granularity.size:
        raise InputError(
            f"{scheme} groups {granularity.size} values across the ends of rows of {k}; "
            "GPTQ goes column by column and cannot. Round these weights to nearest."
        )


def _scales(w: "Tensor", factor: InverseFactor, scheme: Scheme, options: GptqOptions) -> Scales:
    """Return the scales of the original weights."""
    weights = scheme.weights
    matrix, tile = stored_matrix(w, weights), tile_of(weights, *w.shape)
    if options.clip:
        return least_error_scales(matrix, weights, tile, stored_matrix(factor.importance.expand(w.shape), weights))
    return nearest_scales(in_tiles(matrix.float(), tile), weights, scale_dtype(weights, w))


def _order(hessian: "Tensor", options: GptqOptions) -> "Tensor":
    """Return the columns in the order in which they are rounded."""
    import torch

    if options.act_order:
        return hessian.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(hessian))


def _inverse_factor(hessian: "Tensor", order: "Tensor", damping: float) -> InverseFactor:
    """Return the factor with as much damping as it takes.

    With the order reversed H = U U^T, U upper, comes from one decomposition; the factor of the inverse is that of U.
    """
    import torch

    backwards = order.flip(0)
    reversed_ = hessian.float()[backwards][:, backwards]
    diagonal = reversed_.diagonal()
    diagonal[diagonal == 0] = 1.0
    mean = diagonal.mean()
    for fraction in (damping, damping * 10, damping * 100):
        damped = reversed_.clone()
        damped.diagonal().add_(fraction * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return InverseFactor(_inverse_of_upper(lower.flip(0, 1)), order, fraction)
    raise InputError(
        f"The Hessian of the calibration inputs cannot be factored, even damped by {damping * 100:g} of its mean. "
        "Use more calibration text, or a larger damping."
    )


def _inverse_of_upper(upper: "Tensor") -> "Tensor":
    """Return the inverse of an upper triangular matrix by halves, twice as fast as solving for the unit matrix."""
    import torch

    half = len(upper) // 2
    if len(upper) <= _TRIANGLE:
        return torch.linalg.solve_triangular(upper, torch.eye(len(upper), device=upper.device), upper=True)
    inverse = torch.zeros_like(upper)
    first, second = _inverse_of_upper(upper[:half, :half]), _inverse_of_upper(upper[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[:half, half:] = -(first @ upper[:half, half:]) @ second
    return inverse


class _Sweep:
    """Goes over the columns of a matrix, which are kept as rows [k, n], and passes errors on to those to come."""

    def __init__(self, w: "Tensor", factor: InverseFactor, nearest: QuantizedWeight, options: GptqOptions) -> None:
        import torch

        assert nearest.scales is not None
        scheme, (n, k) = nearest.scheme, nearest.shape
        self._scheme, self._options, self._dtype, self._tile = scheme, options, w.dtype, nearest.tile
        self._codec = codec_of(scheme.weights)
        static = options.act_order or needs_whole_matrix(scheme.weights) or self._tile.rows > 1
        self._group = None if static or self._tile.columns >= k else self._tile.columns
        self._order, self._upper, self._importance = factor.order, factor.upper, factor.importance
        self._rows = w.float().T[factor.order].contiguous()
        self._errors = torch.empty_like(self._rows)
        self._codes = torch.empty((k, n), dtype=nearest.codes.dtype, device=w.device)
        self._given = nearest.scales
        self._chosen: list[Scales] = []
        self._spread = _over_rows(nearest.scales, self._tile, n, k)

    def run(self) -> QuantizedWeight:
        """Return the rounded matrix."""
        import torch

        self._halve(_blocks(len(self._rows), self._options.block, self._group))
        restored = torch.empty_like(self._codes)
        restored[self._order] = self._codes
        scales = _side_by_side(self._chosen, self._given) if self._group else self._given
        return QuantizedWeight(restored.T.contiguous(), scales, self._scheme)

    def _halve(self, blocks: list[tuple[int, int]]) -> None:
        """Round the first half of the blocks, pass its errors on to the second, round that."""
        if len(blocks) == 1:
            self._round(*blocks[0])
            return
        middle = len(blocks) // 2
        first, last, end = blocks[0][0], blocks[middle][0], blocks[-1][1]
        self._halve(blocks[:middle])
        self._rows[last:end].addmm_(self._upper[first:last, last:end].T, self._errors[first:last], alpha=-1)
        self._halve(blocks[middle:])

    def _round(self, first: int, last: int) -> None:
        """Round the columns of a block; errors are passed on within it as they arise."""
        if self._group and first % self._group == 0:
            self._choose_scales(first, first + self._group)
        columns = self._order[first:last].tolist()
        rows, errors, upper = self._rows[first:last], self._errors[first:last], self._upper[first:last, first:last]
        pivots = upper.diagonal().tolist()
        for index, column in enumerate(columns):
            factors, points = self._spread.at(column)
            row = rows[index]
            code = self._codec.encode(row / factors, points)
            self._codes[first + index] = code
            error = errors[index]
            error.copy_(row).sub_(self._codec.decode(code, points).mul_(factors)).div_(pivots[index])
            rows[index + 1 :].addr_(upper[index, index + 1 :], error, alpha=-1)

    def _choose_scales(self, first: int, last: int) -> None:
        """Choose the scales of a group for what its weights have become by now."""
        part = self._rows[first:last].T.contiguous().to(self._dtype)
        tile = Tile(1, part.shape[1])
        if self._options.clip:
            scales = least_error_scales(part, self._scheme.weights, tile, self._importance[first:last])
        else:
            dtype = scale_dtype(self._scheme.weights, part)
            scales = nearest_scales(in_tiles(part.float(), tile), self._scheme.weights, dtype)
        self._chosen.append(scales)
        self._spread.put(first // self._tile.columns, scales)


class _Spread:
    """Factors and zero points [tile columns, n], of which a column looks its own up."""

    def __init__(self, factors: "Tensor", points: "Tensor | None", width: int) -> None:
        self._factors, self._points, self._width = factors, points, width

    def at(self, column: int) -> tuple["Tensor", "Tensor | None"]:
        """Return the factors [n] and zero points of a column."""
        tile = column // self._width
        return self._factors[tile], None if self._points is None else self._points[tile]

    def put(self, tile: int, scales: Scales) -> None:
        """Take other scales for a tile."""
        self._factors[tile] = scales.effective()[:, 0]
        if self._points is not None and scales.zero_points is not None:
            self._points[tile] = scales.zero_points[:, 0]


def _over_rows(scales: Scales, tile: Tile, n: int, k: int) -> _Spread:
    def spread(per_tile: "Tensor") -> "Tensor":
        down, across = tile.grid(n, k)
        rows = per_tile.reshape(down, across).repeat_interleave(min(tile.rows, n), dim=0)[:n]
        return rows.T.contiguous()

    points = None if scales.zero_points is None else spread(scales.zero_points)
    return _Spread(spread(scales.effective()), points, tile.columns)


def _compensated(w: "Tensor", factor: InverseFactor, nearest: QuantizedWeight, options: GptqOptions) -> QuantizedWeight:
    return _Sweep(w, factor, nearest, options).run()


def _blocks(k: int, block: int, group: int | None) -> list[tuple[int, int]]:
    """Return the first and past-the-end columns of blocks, none of which reaches over the end of a group."""
    blocks, first = [], 0
    while first < k:
        last = min(first + block, k, first + group - first % group if group else k)
        blocks.append((first, last))
        first = last
    return blocks


def _side_by_side(parts: list[Scales], like: Scales) -> Scales:
    """Return the scales of all groups, in the shape that the format has them in."""
    import torch

    points = [part.zero_points for part in parts if part.zero_points is not None]
    stored = torch.cat([part.stored for part in parts], dim=1).reshape(like.stored.shape)
    return Scales(stored, torch.cat(points, dim=1) if points else None)


def _with_rows(found: QuantizedWeight, other: QuantizedWeight, rows: "Tensor") -> QuantizedWeight:
    """Return `found` with some rows, and their scales where rows have their own, taken from `other`."""
    import torch

    codes = torch.where(rows[:, None], other.codes, found.codes)
    mine, theirs = found.scales, other.scales
    assert mine is not None
    assert theirs is not None
    if mine is theirs:
        return QuantizedWeight(codes, mine, found.scheme)
    per_row = rows.repeat_interleave(len(mine.stored) // len(rows))[:, None]
    return QuantizedWeight(codes, chosen_scales(per_row, theirs, mine), found.scheme)
