"""Scales as they are stored, and how they are chosen: from the extremes, or for the least squared error."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.numbers import Codec, Levels, SignedIntegers, codec_of
from codesign.quantize.tiles import Tile, in_tiles, over_tiles
from codesign.schemes.scheme import PerTensor, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

_E4M3_MAX, _E4M3_SMALLEST = 448.0, 2.0**-9
_E8M0_BIAS, _E8M0_NAN = 127, 255
_SCALES_PER_ABSMAX = 256  # bitsandbytes, functional.py, quantize_4bit
FEW_BITS = 3
_WIDER = tuple(1 + step / 10 for step in range(1, 13))
_SHRINKS = tuple(1 - step / 40 for step in range(1, 24))


@dataclass(frozen=True, slots=True, eq=False)
class TensorScale:
    """One float32 that all scales are divided by. Source: compressed-tensors, weight_global_scale."""

    divisor: "Tensor"


@dataclass(frozen=True, slots=True, eq=False)
class NestedScales:
    """Scales stored as 8-bit codes: table[code] x absmax of 256 of them + offset. Source: QLoRA, section 3."""

    absmax: "Tensor"
    offset: "Tensor"


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """Scales [tile rows, tile columns] in their stored type, with zero points and the scale above, where there are.

    8-bit codes without `above` are powers of two with a bias of 127 (E8M0 of OCP Microscaling Formats v1.0).
    """

    stored: "Tensor"
    zero_points: "Tensor | None" = None
    above: TensorScale | NestedScales | None = None

    def effective(self) -> "Tensor":
        """Return the float32 factors that codes are multiplied with."""
        import torch

        match self.above:
            case TensorScale(divisor):
                return self.stored.float() / divisor
            case NestedScales(absmax, offset):
                factors = dynamic_levels()[self.stored.int()].reshape(-1)
                spread = absmax.repeat_interleave(_SCALES_PER_ABSMAX)[: factors.numel()]
                return (factors * spread + offset).reshape(self.stored.shape)
        if self.stored.dtype == torch.uint8:
            return torch.ldexp(torch.ones_like(self.stored, dtype=torch.float32), self.stored.int() - _E8M0_BIAS)
        return self.stored.float()


def needs_whole_matrix(weights: WeightFormat) -> bool:
    """Return whether scales depend on more than the tiles that they belong to."""
    above = weights.tensor_scale_bits > 0 or (weights.flattened and weights.super_group_size is not None)
    return above or isinstance(weights.granularity, PerTensor)


def scale_dtype(weights: WeightFormat, source: "Tensor") -> "Tensor":
    """Return the torch type of plain scales: 16 bits are those of the weights, and fp16 for 32-bit weights."""
    import torch

    if weights.scale_bits == 32:
        return torch.float32
    return source.dtype if source.dtype in (torch.bfloat16, torch.float16) else torch.float16


def nearest_scales(tiles: "Tensor", weights: WeightFormat, dtype: "Tensor") -> Scales:
    """Return scales that fit the extremes of float32 tiles; NaN and Inf make scales that are neither."""
    codec = codec_of(weights)
    if codec == Levels((-1.0, 1.0)):
        # The mean magnitude is the best scale of signs (XNOR-Net, equation 6); zeros err by the scale either way, and
        # the filling of ragged tiles must not count.
        return _stored(tiles.abs().sum(dim=(1, 3)) / (tiles != 0).sum(dim=(1, 3)).clamp(min=1), weights, dtype)
    low, high = extremes(tiles)
    return range_scales(low, high, weights, dtype)


def range_scales(low: "Tensor", high: "Tensor", weights: WeightFormat, dtype: "Tensor") -> Scales:
    """Return the stored scales, and zero points, of ranges [low, high] that are widened to contain 0."""
    import torch

    codec = codec_of(weights)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if weights.symmetric:
        return _stored(torch.maximum(high, -low) / codec.top, weights, dtype)
    scales = _stored((high - low) / codec.top, weights, dtype)
    exact = -low / scales.effective()
    # 16-bit zero points are floats, so that the smallest value is met exactly. Source: torchao and HQQ.
    floats = weights.zero_point_bits > weights.bits
    zero_points = exact.to(dtype) if floats else exact.round().clamp(0, codec.top).to(torch.uint8)
    return Scales(scales.stored, zero_points)


def extremes(tiles: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the smallest and the largest value of every tile."""
    low, high = tiles.amin(dim=3), tiles.amax(dim=3)
    if tiles.shape[1] == 1:
        return low[:, 0], high[:, 0]
    return low.amin(dim=1), high.amax(dim=1)


def largest_magnitudes(tiles: "Tensor") -> "Tensor":
    """Return the largest magnitude of every tile."""
    import torch

    low, high = extremes(tiles)
    return torch.maximum(high, -low)


def _stored(exact: "Tensor", weights: WeightFormat, dtype: "Tensor") -> Scales:
    """Return positive exact scales as the format stores them."""
    codec = codec_of(weights)
    if weights.tensor_scale_bits:
        return _under_tensor_scale(exact, codec.top)
    if weights.flattened and weights.super_group_size:
        return _nested(exact)
    if weights.scale_bits == 8:
        return Scales(_power_of_two_codes(exact, codec))
    return Scales(_plain(exact, dtype))


def _plain(exact: "Tensor", dtype: "Tensor") -> "Tensor":
    import torch

    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    stored = torch.where(exact == 0, 1.0, exact.clamp(min=smallest)).to(dtype)
    if bool((stored.isinf() & exact.isfinite()).any()):
        raise InputError(f"A scale of {exact.max().item():.3g} does not fit {dtype}; give the weights in bfloat16.")
    return stored


def _under_tensor_scale(exact: "Tensor", top: float) -> Scales:
    """Return scales that use the whole range of E4M3 under one divisor. Source: compressed-tensors, generate_gparam."""
    return scales_under(exact, tensor_divisor(exact.max().reshape(1) * top, top))


def tensor_divisor(largest: "Tensor", top: float = 6.0) -> "Tensor":
    """Return the divisor [1] with which the scale of the largest magnitude is the largest of E4M3."""
    import torch

    known = largest.clamp(min=torch.finfo(torch.float32).tiny * top)
    return (_E4M3_MAX * top / known).clamp(max=torch.finfo(torch.float32).max)


def scales_under(exact: "Tensor", divisor: "Tensor") -> Scales:
    """Return E4M3 scales nearest to the exact ones under a divisor."""
    import torch

    inside = (exact * divisor).clamp(_E4M3_SMALLEST, _E4M3_MAX)
    return Scales(inside.to(torch.float8_e4m3fn), above=TensorScale(divisor))


def _power_of_two_codes(exact: "Tensor", codec: Codec) -> "Tensor":
    """Return exponents with which the largest value rounds to the largest code at most.

    It may saturate by less than half a step; from there the exponent is one higher.
    Source: OCP Microscaling Formats v1.0, section 6.3, and compressed-tensors, round_to_power_2.
    """
    import torch

    _, exponent = torch.frexp(torch.tensor(codec.top))
    mantissa, shift = torch.frexp(exact * codec.top)
    bump = (mantissa * 2 >= _SATURATES_AT[codec.top]).int()
    codes = shift - exponent + bump + _E8M0_BIAS
    known = torch.where(exact > 0, codes.clamp(0, _E8M0_NAN - 1), 0)
    return torch.where(exact.isfinite(), known, _E8M0_NAN).to(torch.uint8)


# The leading digits of the largest value of a tile, as 1.x times a power of two, from which a saturated value would be
# nearer to the next power of two. E4M3 has no code beyond 448 = 1.75 x 256 but NaN.
_SATURATES_AT = {6.0: 1.75, 28.0: 1.875, 448.0: 1.75}


def _nested(exact: "Tensor") -> Scales:
    """Return scales quantized to 8 bits, 256 under one absolute maximum, around their mean."""
    import torch

    offset = exact.mean()
    flat = (exact - offset).reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % _SCALES_PER_ABSMAX)).view(-1, _SCALES_PER_ABSMAX)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks / absmax.clamp(min=1e-38)[:, None]).clamp(-1, 1).reshape(-1)[: flat.numel()]
    levels = dynamic_levels()
    codes = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return Scales(codes.reshape(exact.shape), above=NestedScales(absmax, offset))


def dynamic_levels() -> "Tensor":
    """Return the 256 sorted levels of the dynamic 8-bit data type.

    Decade i from 10^-6 to 1 has 2^i equal steps on each side, plus 0 and 1.
    Source: Dettmers, 8-bit Approximations for Parallelism in Deep Learning; bitsandbytes, create_dynamic_map.
    """
    import torch

    found = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        found += [middles, -middles]
    return torch.cat(found).sort().values


def least_error_scales(
    matrix: "Tensor", weights: WeightFormat, tile: Tile, importance: "Tensor | None" = None
) -> Scales:
    """Return for every tile the scales, of ranges shrunk (and widened) step by step, with the least squared error.

    `importance`, [k] or as the matrix, weighs errors. The scale above, where there is one, is that of the whole range.
    """
    import torch

    tiles = in_tiles(matrix.float(), tile)
    weight = None if importance is None else in_tiles(importance.float().expand(matrix.shape), tile)
    dtype, codec = scale_dtype(weights, matrix), codec_of(weights)
    best = nearest_scales(tiles, weights, dtype)
    if isinstance(codec, Levels) and weights.super_group_size:
        return best
    low, high = extremes(tiles)
    least = _squared_error(tiles, best, codec, weight)
    for factor in (*_wider(codec), *_SHRINKS):
        tried = _shrunk(low * factor, high * factor, weights, dtype, best)
        error = _squared_error(tiles, tried, codec, weight)
        better = error < least
        least = torch.where(better, error, least)
        best = chosen_scales(better, tried, best)
    return best


def _wider(codec: Codec) -> tuple[float, ...]:
    """Return the factors by which the range is widened: one that meets a positive extreme exactly.

    Two and three bits also meet it in their other codes, and lie between two values rather than on one, at times.
    """
    if not isinstance(codec, SignedIntegers):
        return (1.0,)
    highest = 2 ** (codec.bits - 1) - 1
    if codec.bits > FEW_BITS:
        return (codec.top / highest,)
    return (*(codec.top / code for code in range(highest, 0, -1)), *_WIDER)


def _shrunk(low: "Tensor", high: "Tensor", weights: WeightFormat, dtype: "Tensor", best: Scales) -> Scales:
    """Return the scales of smaller ranges under the same scale above."""
    import torch

    if not isinstance(best.above, TensorScale):
        return range_scales(low, high, weights, dtype)
    return scales_under(torch.maximum(high, -low) / codec_of(weights).top, best.above.divisor)


def _squared_error(tiles: "Tensor", scales: Scales, codec: Codec, weight: "Tensor | None") -> "Tensor":
    factors = over_tiles(scales.effective())
    zero_points = None if scales.zero_points is None else over_tiles(scales.zero_points)
    values = codec.decode(codec.encode(tiles / factors, zero_points), zero_points) * factors
    squared = (values - tiles).square_()
    return (squared if weight is None else squared * weight).sum(dim=(1, 3))


def chosen_scales(where: "Tensor", first: Scales, second: Scales) -> Scales:
    """Return the first scales where the condition [tile rows, tile columns] holds, else the second."""
    import torch

    def choose(left: "Tensor", right: "Tensor") -> "Tensor":
        return torch.where(where, left.float(), right.float()).to(left.dtype)

    zero_points = None
    if first.zero_points is not None and second.zero_points is not None:
        zero_points = choose(first.zero_points, second.zero_points)
    return Scales(choose(first.stored, second.stored), zero_points, second.above)
