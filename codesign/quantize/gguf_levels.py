"""GGUF types whose codes are numbers of levels that are not evenly spaced."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.quantize.gguf_fit import Levels, by_group, error_weight, fit_levels, signed_extreme
from codesign.quantize.gguf_layout import (
    SHORT,
    SUPER,
    Kind,
    from_halves,
    halves,
    inverse,
    pack_alternating,
    pack_nibbles,
    unpack_alternating,
    unpack_nibbles,
)

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl, ggml-common.h


@functools.cache
def _levels() -> Levels:
    return Levels(_LEVELS)


def _level_values(codes: "Tensor") -> "Tensor":
    import torch

    return torch.tensor(_LEVELS, dtype=torch.float32)[codes.int()]


def _fitted(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    return fit_levels(by_group(x, SHORT), by_group(error_weight(x, importance), SHORT), _levels())


def _encode_iq4_nl(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return a half and 16 bytes of codes."""
    import torch

    scale = _fitted(x, importance)[:, None].to(torch.float16)
    return torch.cat((halves(scale), pack_nibbles(_levels().codes(x * inverse(scale.float())))), dim=1)


def _decode_iq4_nl(blocks: "Tensor") -> "Tensor":
    return from_halves(blocks[:, :2]) * _level_values(unpack_nibbles(blocks[:, 2:]))


def _encode_iq4_xs(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return a half, 2 bytes of the high bits of eight 6-bit scales, 4 of their low bits, 128 of codes."""
    import torch

    scale = _fitted(x, importance).view(-1, 8)
    step = (signed_extreme(scale, 1) / -32).to(torch.float16)
    scales = (scale * inverse(step.float())).round_().clamp_(-32, 31)
    groups = x.view(-1, 8, SHORT)
    codes = _levels().codes(groups * inverse(step.float() * scales)[..., None])
    stored = (scales + 32).byte()
    high = (stored >> 4).view(-1, 2, 4) << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    head = (halves(step), high.sum(dim=2, dtype=torch.uint8), pack_alternating(stored))
    return torch.cat((*head, pack_nibbles(codes).reshape(-1, 128)), dim=1)


def _decode_iq4_xs(blocks: "Tensor") -> "Tensor":
    import torch

    high = (blocks[:, 2:4, None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)) & 3
    scales = (unpack_alternating(blocks[:, 4:8]) | (high.reshape(-1, 8) << 4)).float() - 32
    factors = (from_halves(blocks[:, :2]) * scales)[..., None]
    return (factors * _level_values(unpack_nibbles(blocks[:, 8:].reshape(-1, 8, 16)))).reshape(-1, SUPER)


# E2M1 floats, here doubled to be integers: quantize_row_mxfp4_ref and quantize_row_nvfp4_ref of ggml-quants.c.

_MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)


@functools.cache
def _float_levels() -> Levels:
    return Levels(tuple(-magnitude for magnitude in reversed(_MAGNITUDES)))


def _float_codes(scaled: "Tensor") -> "Tensor":
    """Return the codes of the nearest floats, the smaller magnitude of two; the highest bit is the sign."""
    magnitude = 7 - _float_levels().codes(-scaled.abs())
    return magnitude | (((scaled < 0) & (magnitude > 0)).byte() << 3)


def _float_values(codes: "Tensor") -> "Tensor":
    import torch

    magnitudes = torch.tensor(_MAGNITUDES, dtype=torch.float32)
    return torch.cat((magnitudes, -magnitudes))[codes.int()]


def _encode_mxfp4(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return a byte for the power of two of half the scale and 16 bytes of codes."""
    import torch

    largest = x.abs().amax(dim=1, keepdim=True)
    exponent = torch.where(largest > 0, largest.frexp().exponent - 3 + 127, 0).clamp_(0, 254)
    codes = _float_codes(x * inverse(_power_of_two(exponent)))
    return torch.cat((exponent.byte(), pack_nibbles(codes)), dim=1)


def _power_of_two(exponent: "Tensor") -> "Tensor":
    import torch

    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.int() - 128)


def _decode_mxfp4(blocks: "Tensor") -> "Tensor":
    return _power_of_two(blocks[:, :1]) * _float_values(unpack_nibbles(blocks[:, 1:]))


def _encode_nvfp4(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return four E4M3 scales of 16 values each and 32 bytes of codes."""
    import torch

    groups = x.view(-1, 4, 16)
    scale = (groups.abs().amax(dim=2) / 6).clamp_(max=448).to(torch.float8_e4m3fn)
    codes = _float_codes(groups * inverse(scale.float() / 2)[..., None])
    return torch.cat((scale.view(torch.uint8), pack_nibbles(codes).reshape(-1, 32)), dim=1)


def _decode_nvfp4(blocks: "Tensor") -> "Tensor":
    import torch

    scale = (blocks[:, :4] & 127).view(torch.float8_e4m3fn).float() / 2
    return (scale[..., None] * _float_values(unpack_nibbles(blocks[:, 4:].reshape(-1, 4, 8)))).reshape(-1, 64)


LEVEL_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "IQ4_NL": Kind(SHORT, 18, _encode_iq4_nl, _decode_iq4_nl),
        "IQ4_XS": Kind(SUPER, 136, _encode_iq4_xs, _decode_iq4_xs),
        "GGML-MXFP4": Kind(SHORT, 17, _encode_mxfp4, _decode_mxfp4),
        "GGML-NVFP4": Kind(64, 36, _encode_nvfp4, _decode_nvfp4),
    }
)
