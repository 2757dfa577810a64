"""HQQ: zero points chosen without data, so that the largest errors of a group count less than with least squares.

Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models (2023), and its optimize.py.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.numbers import Codec, codec_of
from codesign.quantize.round import QuantizedWeight, check_finite, check_matrix, quantize_weight
from codesign.quantize.scales import Scales, nearest_scales, scale_dtype
from codesign.quantize.tiles import in_tiles, over_tiles, tile_of
from codesign.schemes.scheme import PerChannel, PerGroup, Scheme

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_VALUES = 1 << 18  # float32 values that stay in the second-level cache between operations


@dataclass(frozen=True, slots=True)
class HqqOptions:
    """The norm l_p that is made small, the weight of the penalty and its growth per step. Source: optimize.py."""

    norm: float = 0.7
    penalty: float = 10.0
    growth: float = 1.01
    steps: int = 20


@dataclass(frozen=True, slots=True, eq=False)
class HqqResult:
    """The weights, and the sums of |error|^p before the first step and after each; the best of each group is kept."""

    weight: QuantizedWeight
    errors: tuple[float, ...]


def refusal(scheme: Scheme) -> str | None:
    """Return why HQQ has nothing to solve for in a scheme, or None."""
    weights = scheme.weights
    plain = isinstance(weights.granularity, PerGroup | PerChannel) and weights.number.startswith("int")
    if scheme.family == "gguf" or not plain or weights.flattened:
        return f"HQQ solves for the zero points of integers in groups, which {scheme} is not; use W4A16-g64-asym16."
    if weights.symmetric:
        return f"HQQ solves for zero points, which {scheme} has none of; use {scheme}-asym16 or {scheme}-asym, or gptq."
    return None


def hqq(w: "Tensor", scheme: Scheme, options: HqqOptions | None = None) -> HqqResult:
    """Return the floats [n, k] with the zero points of the least |error|^p that the half-quadratic steps meet.

    Scales stay those of rounding to nearest, with which the steps begin: no group is worse than that.
    """
    import torch

    check_matrix(w)
    check_finite(w)
    why = refusal(scheme)
    if why:
        raise InputError(why)
    chosen, tile = options or HqqOptions(), tile_of(scheme.weights, *w.shape)
    rows = max(_CHUNK_VALUES // w.shape[1], 1)
    parts, totals = [], torch.zeros(chosen.steps + 1, dtype=torch.float64)
    for part in w.split(rows):
        tiles = in_tiles(part.float(), tile)
        start = nearest_scales(tiles, scheme.weights, scale_dtype(scheme.weights, w))
        scales, errors = _solved(tiles, start, codec_of(scheme.weights), chosen)
        parts.append(scales)
        totals += errors
    points = [part.zero_points for part in parts if part.zero_points is not None]
    scales = Scales(torch.cat([part.stored for part in parts]), torch.cat(points))
    return HqqResult(quantize_weight(w, scheme, scales=scales), tuple(totals.tolist()))


def _solved(tiles: "Tensor", start: Scales, codec: Codec, options: HqqOptions) -> tuple[Scales, "Tensor"]:
    """Return the best scales of every tile, and the sum of the least errors after each step."""
    import torch

    assert start.zero_points is not None
    factors, points = over_tiles(start.effective()), over_tiles(start.zero_points).float()
    best, least = start.zero_points, torch.full_like(start.effective(), torch.inf)
    penalty, sums = options.penalty, []
    for _ in range(options.steps + 1):
        stored = _as_stored(points, start.zero_points, codec)
        codes = codec.encode(tiles / factors, stored)
        error = tiles - codec.decode(codes, stored) * factors
        norm = error.abs().pow(options.norm).sum(dim=(1, 3))
        better = norm < least
        best = torch.where(better, stored[:, 0, :, 0], best)
        least = torch.where(better, norm, least)
        sums.append(least.sum(dtype=torch.float64))
        kept = _shrunk(error, penalty, options.norm)
        points = (codes.float() - (tiles - kept) / factors).mean(dim=(1, 3), keepdim=True)
        penalty *= options.growth
    return Scales(start.stored, best), torch.stack(sums)


def _shrunk(error: "Tensor", penalty: float, norm: float) -> "Tensor":
    """Return the errors that are kept as outliers: the generalized soft threshold of l_p, p < 1."""
    magnitude = error.abs()
    return error.sign() * (magnitude - magnitude.clamp(min=1e-12).pow(norm - 1) / penalty).clamp(min=0)


def _as_stored(points: "Tensor", like: "Tensor", codec: Codec) -> "Tensor":
    """Return zero points as the format keeps them: 16-bit floats, or integers that are codes."""
    return points.to(like.dtype) if like.is_floating_point() else points.round().clamp(0, codec.top).to(like.dtype)
