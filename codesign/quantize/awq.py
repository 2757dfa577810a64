"""AWQ: channels with large activations are scaled up before rounding, and ranges are clipped by the output error.

Source: Lin et al., AWQ, section 3.2 and its code (auto_scale.py, auto_clip.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.errors import hessian_error
from codesign.quantize.fold import Fold, usable_factors
from codesign.quantize.numbers import Codec, Levels, codec_of
from codesign.quantize.round import QuantizedWeight, check_finite, quantize_weight
from codesign.quantize.scales import Scales, chosen_scales, extremes, range_scales, scale_dtype
from codesign.quantize.statistics import InputStatistics
from codesign.quantize.tiles import in_tiles, over_tiles, tile_of
from codesign.schemes.scheme import PerChannel, PerGroup, Scheme

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 20
_CLIP_SHRINKS = tuple(1 - step / 20 for step in range(11))  # AWQ searches no further than half of the range


@dataclass(frozen=True, slots=True, eq=False)
class AwqResult:
    """The scales to fold, the exponent that gave them, and the output errors with and without them."""

    fold: Fold
    exponent: float
    error: float
    nearest_error: float


def search_fold(weights: Sequence["Tensor"], inputs: InputStatistics, scheme: Scheme) -> AwqResult:
    """Return the best power of the mean input magnitudes as channel scales of layers that share their input.

    The error is that of the outputs, from the Hessian; an exponent of 0 leaves everything as it is.
    """
    hessian = _hessian(inputs)
    for w in weights:
        check_finite(w)
    candidates = []
    for step in range(_STEPS):
        exponent = step / _STEPS
        fold = Fold(_factors(inputs.mean_magnitude, exponent))
        candidates.append((sum(_folded_error(w, fold, hessian, scheme) for w in weights), exponent, fold))
    error, exponent, fold = min(candidates, key=lambda candidate: candidate[0])
    return AwqResult(fold, exponent, error, candidates[0][0])


def _hessian(inputs: InputStatistics) -> "Tensor":
    if inputs.hessian is None:
        raise InputError("AWQ measures output errors: collect the statistics with their Hessian.")
    return inputs.hessian


def _factors(magnitude: "Tensor", exponent: float) -> "Tensor":
    """Return magnitude^exponent around 1, so that neither weights nor inputs leave the range of 16 bits."""
    powers = usable_factors(magnitude.pow(exponent))
    return usable_factors(powers / (powers.max() * powers.min()).sqrt())


def _folded_error(w: "Tensor", fold: Fold, hessian: "Tensor", scheme: Scheme) -> float:
    rounded = quantize_weight(fold.into_weights(w), scheme).dequantize()
    return float(hessian_error(rounded / fold.factors - w.float(), hessian).sum())


def clippable(scheme: Scheme) -> bool:
    """Return whether each row and group of a scheme has a plain scale, whose range can be cut."""
    weights = scheme.weights
    return isinstance(weights.granularity, PerGroup | PerChannel) and not weights.flattened and weights.scale_bits != 8


def clipped(w: "Tensor", inputs: InputStatistics, scheme: Scheme) -> QuantizedWeight:
    """Return the weights rounded with the ranges, shrunk by up to a half, of the least output error of every group.

    Groups are taken one by one: what errors of two groups have in common is left out.
    """
    weights = scheme.weights
    if not clippable(scheme):
        raise InputError(f"Clipping is searched per row and group with plain scales, which {scheme} has not.")
    check_finite(w)
    tile, codec = tile_of(weights, *w.shape), codec_of(weights)
    tiles = in_tiles(w.float(), tile)
    blocks = _diagonal_blocks(_hessian(inputs), tile.columns)
    low, high = extremes(tiles)
    best, least = None, None
    for shrink in _CLIP_SHRINKS:
        scales = range_scales(low * shrink, high * shrink, weights, scale_dtype(weights, w))
        error = _tile_errors(tiles, scales, codec, blocks)
        best = scales if best is None or least is None else chosen_scales(error < least, scales, best)
        least = error if least is None else error.minimum(least)
    return quantize_weight(w, scheme, scales=best)


def _diagonal_blocks(hessian: "Tensor", size: int) -> "Tensor":
    """Return the blocks [groups, size, size] on the diagonal; the last is filled with zeros."""
    groups = -(-len(hessian) // size)
    blocks = hessian.new_zeros((groups, size, size))
    for group in range(groups):
        part = hessian[group * size : (group + 1) * size, group * size : (group + 1) * size]
        blocks[group, : len(part), : len(part)] = part
    return blocks


def _tile_errors(tiles: "Tensor", scales: Scales, codec: Codec, blocks: "Tensor") -> "Tensor":
    """Return the output error [n, groups] of each group by itself."""
    import torch

    assert not isinstance(codec, Levels) or scales.above is None
    points = None if scales.zero_points is None else over_tiles(scales.zero_points)
    factors = over_tiles(scales.effective())
    difference = (codec.decode(codec.encode(tiles / factors, points), points) * factors - tiles)[:, 0].transpose(0, 1)
    return ((torch.bmm(difference, blocks)) * difference).sum(dim=2).T
