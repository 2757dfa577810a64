"""Activations rounded as a scheme stores them, dynamic or with a scale that calibration chose."""

from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.numbers import codec_of
from codesign.quantize.scales import (
    Scales,
    largest_magnitudes,
    nearest_scales,
    range_scales,
    scales_under,
    tensor_divisor,
)
from codesign.quantize.tiles import from_tiles, in_tiles, over_tiles, tile_of
from codesign.schemes.scheme import ActivationFormat, PerChannel, PerGroup, PerTensor, PerToken, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor


def quantize_activations(x: "Tensor", format_: ActivationFormat, fixed: ActivationRange | None = None) -> "Tensor":
    """Return float32 values [m, k] as the format holds them.

    Static formats take the range of the calibration; without one the range is that of `x`, which is how much a perfect
    calibration would give. NVFP4 takes the scale above its scales from the range.
    """
    import torch

    if format_.granularity is None:
        return x.float()
    weights = as_weights(format_)
    if fixed is not None and not isinstance(format_.granularity, PerTensor) and not weights.tensor_scale_bits:
        raise InputError(
            "A calibrated range is one for all activations, but this scheme has scales per token or group."
        )
    tile, codec = tile_of(weights, *x.shape), codec_of(weights)
    tiles = in_tiles(x.float(), tile)
    if fixed is None:
        scales = nearest_scales(tiles, weights, torch.float32)
    elif weights.tensor_scale_bits:
        scales = scales_under(largest_magnitudes(tiles) / codec.top, input_divisor(fixed))
    else:
        scales = Scales(fixed_scale(format_, fixed)[None])
    factors = over_tiles(scales.effective())
    return from_tiles(codec.decode(codec.encode(tiles / factors, None), None) * factors, *x.shape)


def fixed_scale(format_: ActivationFormat, fixed: ActivationRange) -> "Tensor":
    """Return the float32 scale [1] of static activations with that range."""
    import torch

    low, high = torch.tensor([[fixed.low]]), torch.tensor([[fixed.high]])
    return range_scales(low, high, as_weights(format_), torch.float32).stored.reshape(1)


def input_divisor(fixed: ActivationRange) -> "Tensor":
    """Return the float32 [1] that the scales of NVFP4 activations with that range are divided by."""
    import torch

    return tensor_divisor(torch.tensor([max(fixed.high, -fixed.low)]))


def as_weights(format_: ActivationFormat) -> WeightFormat:
    """Return the weight format that rounds like these activations: a token is a row."""
    granularity = PerChannel() if isinstance(format_.granularity, PerToken) else format_.granularity
    # Groups of 16 have E4M3 scales under a scale of the tensor (NVFP4), those of 32 powers of two (MXFP4).
    tensor_scale_bits = 32 if format_.number == "e2m1" and granularity == PerGroup(16) else 0
    return WeightFormat(
        format_.number, format_.bits, granularity, format_.scale_bits, tensor_scale_bits=tensor_scale_bits
    )
