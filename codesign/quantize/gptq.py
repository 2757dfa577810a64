"""GPTQ: columns are rounded one after the other, and those still to come make up for the error.

Source: Frantar et al., GPTQ, algorithm 1.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.errors import hessian_error
from codesign.quantize.numbers import Codec, codec_of
from codesign.quantize.round import QuantizedWeight, check_finite, check_matrix, quantize_weight
from codesign.quantize.scales import (
    Scales,
    chosen_scales,
    least_error_scales,
    nearest_scales,
    needs_whole_matrix,
    scale_dtype,
)
from codesign.quantize.tiles import Tile, in_tiles, stored_matrix, tile_of
from codesign.schemes.scheme import PerGroup, Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class GptqOptions:
    """How GPTQ runs.

    `damping` is added to the diagonal as a fraction of its mean, ten times more until the matrix can be factored.
    With `act_order` columns go by falling importance and scales are those of the original groups, so that nothing about
    the order is stored; without it each group's scales are chosen when it is reached, errors made up for included.
    `clip` chooses scales for the least squared error instead of the extremes.
    """

    damping: float = 0.01
    block: int = 128
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
class _Columns:
    """Scales spread over the columns: [n or 1, k] factors and zero points."""

    factors: "Tensor"
    zero_points: "Tensor | None"


def gptq(w: "Tensor", hessian: "Tensor", scheme: Scheme, options: GptqOptions | None = None) -> GptqResult:
    """Return the weights [n, k] rounded for inputs whose X^T X is `hessian` [k, k].

    A row for which rounding to nearest errs less keeps that. Inputs that are always zero are rounded to nearest.
    """
    chosen = options or GptqOptions()
    _check(w, hessian, scheme)
    exact = w.float()
    nearest = quantize_weight(w, scheme, scales=_scales(w, scheme, chosen))
    factor, damping = _inverse_factor(hessian, _order(hessian, chosen), chosen.damping)
    codes, scales = _compensated(_Problem(w, factor, _order(hessian, chosen)), scheme, chosen, nearest.scales)
    found = QuantizedWeight(codes, scales, scheme)
    error = hessian_error(found.dequantize() - exact, hessian)
    nearest_error = hessian_error(nearest.dequantize() - exact, hessian)
    worse = error > nearest_error
    return GptqResult(
        weight=_with_rows(found, nearest, worse),
        error=float(error.minimum(nearest_error).sum()),
        nearest_error=float(nearest_error.sum()),
        damping=damping,
        kept_nearest_rows=int(worse.sum()),
    )


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


def _scales(w: "Tensor", scheme: Scheme, options: GptqOptions) -> Scales:
    """Return the scales of the original weights."""
    weights = scheme.weights
    matrix, tile = stored_matrix(w, weights), tile_of(weights, *w.shape)
    if options.clip:
        return least_error_scales(matrix, weights, tile)
    return nearest_scales(in_tiles(matrix.float(), tile), weights, scale_dtype(weights, w))


def _order(hessian: "Tensor", options: GptqOptions) -> "Tensor":
    """Return the columns in the order in which they are rounded."""
    import torch

    if options.act_order:
        return hessian.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(hessian))


def _inverse_factor(hessian: "Tensor", order: "Tensor", damping: float) -> tuple["Tensor", float]:
    """Return the upper Cholesky factor of the inverse of the damped Hessian, and the damping that it took."""
    import torch

    ordered = hessian.float()[order][:, order]
    diagonal = ordered.diagonal()
    diagonal[diagonal == 0] = 1.0
    mean = diagonal.mean()
    for fraction in (damping, damping * 10, damping * 100):
        damped = ordered.clone()
        damped.diagonal().add_(fraction * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return factor, fraction
    raise InputError(
        f"The Hessian of the calibration inputs cannot be factored, even damped by {damping * 100:g} of its mean. "
        "Use more calibration text, or a larger damping."
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Weights as given, the inverse factor in the order of rounding and that order."""

    w: "Tensor"
    factor: "Tensor"
    order: "Tensor"


def _compensated(
    problem: _Problem, scheme: Scheme, options: GptqOptions, given: Scales | None
) -> tuple["Tensor", Scales]:
    """Return codes [n, k] and scales after going over all columns."""
    import torch

    assert given is not None
    w, order, factor = problem.w.float()[:, problem.order], problem.order, problem.factor
    n, k = w.shape
    tile, codec = tile_of(scheme.weights, n, k), codec_of(scheme.weights)
    static = options.act_order or needs_whole_matrix(scheme.weights) or tile.rows > 1 or tile.columns >= k
    columns, group = _spread(given, tile, n, k), None if static else tile.columns
    pieces, parts = [], []
    for first, last in _blocks(k, options.block, group):
        if group and first % group == 0:
            parts.append(_group_scales(w[:, first : first + group].to(problem.w.dtype), scheme, options))
        here = _spread(parts[-1], tile, n, last - first) if group else _take(columns, order[first:last])
        codes, errors = _round_block(w[:, first:last], factor[first:last, first:last], here, codec)
        pieces.append(codes)
        w[:, last:] -= errors.T @ factor[first:last, last:]
    ordered = torch.cat(pieces)
    restored = torch.empty_like(ordered)
    restored[order] = ordered
    return restored.T.contiguous(), _side_by_side(parts, given) if group else given


def _blocks(k: int, block: int, group: int | None) -> list[tuple[int, int]]:
    """Return the first and past-the-end columns of blocks, none of which reaches over the end of a group."""
    blocks, first = [], 0
    while first < k:
        last = min(first + block, k, first + group - first % group if group else k)
        blocks.append((first, last))
        first = last
    return blocks


def _round_block(w: "Tensor", factor: "Tensor", columns: _Columns, codec: Codec) -> tuple["Tensor", "Tensor"]:
    """Return codes and scaled errors [columns, n]; errors are passed on within the block as they arise."""
    import torch

    rows = w.T.contiguous()
    codes, errors = [], torch.empty_like(rows)
    factors, points = columns.factors.T, None if columns.zero_points is None else columns.zero_points.T
    for index in range(len(rows)):
        point = None if points is None else points[index]
        code = codec.encode(rows[index] / factors[index], point)
        error = (rows[index] - codec.decode(code, point) * factors[index]) / factor[index, index]
        rows[index + 1 :].addr_(factor[index, index + 1 :], error, alpha=-1)
        codes.append(code)
        errors[index] = error
    return torch.stack(codes), errors


def _group_scales(group: "Tensor", scheme: Scheme, options: GptqOptions) -> Scales:
    tile = Tile(1, group.shape[1])
    if options.clip:
        return least_error_scales(group, scheme.weights, tile)
    return nearest_scales(in_tiles(group.float(), tile), scheme.weights, scale_dtype(scheme.weights, group))


def _spread(scales: Scales, tile: Tile, n: int, k: int) -> _Columns:
    """Return factors and zero points for every value of the matrix."""

    def spread(per_tile: "Tensor") -> "Tensor":
        down, across = tile.grid(n, k)
        rows = per_tile.reshape(down, across).repeat_interleave(min(tile.rows, n), dim=0)[:n]
        return rows.repeat_interleave(min(tile.columns, k), dim=1)[:, :k]

    return _Columns(spread(scales.effective()), None if scales.zero_points is None else spread(scales.zero_points))


def _take(columns: _Columns, places: "Tensor") -> _Columns:
    points = None if columns.zero_points is None else columns.zero_points[:, places]
    return _Columns(columns.factors[:, places], points)


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
