"""Activations rounded as a scheme stores them, dynamic or with a scale that calibration chose."""

from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.numbers import codec_of
from codesign.quantize.scales import nearest_scales, range_scales
from codesign.quantize.tiles import from_tiles, in_tiles, over_tiles, tile_of
from codesign.schemes.scheme import ActivationFormat, PerChannel, PerTensor, PerToken, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

_WORD_BITS_OF_FLOAT = 32


def quantize_activations(x: "Tensor", format_: ActivationFormat, fixed: ActivationRange | None = None) -> "Tensor":
    """Return float32 values [m, k] as the format holds them.

    Static formats take the range of the calibration; without one the range is that of `x`, which is how much a perfect
    calibration would give.
    """
    import torch

    if format_.granularity is None:
        return x.float()
    if fixed is not None and not isinstance(format_.granularity, PerTensor):
        raise InputError("A calibrated range is one for all activations, but this scheme has scales per token or group.")
    weights = _as_weights(format_)
    tile, codec = tile_of(weights, *x.shape), codec_of(weights)
    tiles = in_tiles(x.float(), tile)
    if fixed is None:
        scales = nearest_scales(tiles, weights, torch.float32)
    else:
        scales = range_scales(torch.tensor([[fixed.low]]), torch.tensor([[fixed.high]]), weights, torch.float32)
    factors = over_tiles(scales.effective())
    return from_tiles(codec.decode(codec.encode(tiles / factors, None), None) * factors, *x.shape)


def _as_weights(format_: ActivationFormat) -> WeightFormat:
    """Return the weight format that rounds like these activations: a token is a row."""
    granularity = PerChannel() if isinstance(format_.granularity, PerToken) else format_.granularity
    if format_.number == "e2m1" and format_.scale_bits == 8 and tile_is_nvfp4(format_):
        return WeightFormat("e2m1", 4, granularity, 8, tensor_scale_bits=_WORD_BITS_OF_FLOAT)
    return WeightFormat(format_.number, format_.bits, granularity, format_.scale_bits)


def tile_is_nvfp4(format_: ActivationFormat) -> bool:
    """Return whether scales are E4M3 under a scale of the tensor: groups of 16, where MX formats have 32."""
    from codesign.schemes.scheme import PerGroup

    return isinstance(format_.granularity, PerGroup) and format_.granularity.size == 16
