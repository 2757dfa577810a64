"""GGUF types of 32 values: one or two halves, then the codes.

Without importance nothing is searched for, and codes are chosen for the exact scale, not for the stored half: so does
ggml, and files are to be equal byte by byte.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.quantize.gguf_fit import by_group, error_weight, fit_ranged, fit_signed, signed_extreme
from codesign.quantize.gguf_layout import (
    SHORT,
    Kind,
    away_from_zero,
    from_halves,
    halves,
    inverse,
    pack_bits,
    pack_nibbles,
    unpack_bits,
    unpack_nibbles,
)

if TYPE_CHECKING:
    from torch import Tensor


def _encode_signed(x: "Tensor", importance: "Tensor | None", bits: int) -> tuple["Tensor", "Tensor"]:
    """Return scales and codes from 0; without importance, scales map the signed extreme to the lowest code."""
    half = 2 ** (bits - 1)
    if importance is None:
        scale = _first_extreme(x) / -half
    else:
        scale = fit_signed(by_group(x, SHORT), by_group(error_weight(x, importance), SHORT), half)[:, None]
    codes = (x * inverse(scale) + (half + 0.5)).clamp_(0, 2 * half - 1)
    return scale, codes.byte()  # which cuts off the fraction


def _first_extreme(x: "Tensor") -> "Tensor":
    """Return the value [blocks, 1] with the largest magnitude, the first of two: as ggml does."""
    extreme = signed_extreme(x, 1)
    tied = (extreme == -x.amin(dim=1, keepdim=True))[:, 0]
    rows = x[tied]
    extreme[tied] = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return extreme


def _encode_ranged(x: "Tensor", importance: "Tensor | None", bits: int) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return scales, minima and codes; without importance, codes go from the lowest to the highest value."""
    top = 2**bits - 1
    if importance is None:
        low = x.amin(dim=1, keepdim=True)
        scale = (x.amax(dim=1, keepdim=True) - low) / top
    else:
        fitted = fit_ranged(by_group(x, SHORT), by_group(error_weight(x, importance), SHORT), top)
        scale, low = fitted[0][:, None], fitted[1][:, None]
    codes = ((x - low) * inverse(scale) + 0.5).clamp_(0, top)
    return scale, low, codes.byte()  # which cuts off the fraction


def _encode_q4_0(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    scale, codes = _encode_signed(x, importance, 4)
    return torch.cat((halves(scale), pack_nibbles(codes)), dim=1)


def _decode_q4_0(blocks: "Tensor") -> "Tensor":
    return from_halves(blocks[:, :2]) * (unpack_nibbles(blocks[:, 2:]).float() - 8)


def _encode_q4_1(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    scale, low, codes = _encode_ranged(x, importance, 4)
    return torch.cat((halves(scale), halves(low), pack_nibbles(codes)), dim=1)


def _decode_q4_1(blocks: "Tensor") -> "Tensor":
    scale, low = from_halves(blocks[:, :2]), from_halves(blocks[:, 2:4])
    return scale * unpack_nibbles(blocks[:, 4:]).float() + low


def _encode_q5_0(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    scale, codes = _encode_signed(x, importance, 5)
    return torch.cat((halves(scale), pack_bits(codes >> 4), pack_nibbles(codes)), dim=1)


def _decode_q5_0(blocks: "Tensor") -> "Tensor":
    codes = unpack_nibbles(blocks[:, 6:]) | (unpack_bits(blocks[:, 2:6]) << 4)
    return from_halves(blocks[:, :2]) * (codes.float() - 16)


def _encode_q5_1(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    scale, low, codes = _encode_ranged(x, importance, 5)
    return torch.cat((halves(scale), halves(low), pack_bits(codes >> 4), pack_nibbles(codes)), dim=1)


def _decode_q5_1(blocks: "Tensor") -> "Tensor":
    codes = unpack_nibbles(blocks[:, 8:]) | (unpack_bits(blocks[:, 4:8]) << 4)
    return from_halves(blocks[:, :2]) * codes.float() + from_halves(blocks[:, 2:4])


def _encode_q8_0(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    scale = x.abs().amax(dim=1, keepdim=True) / 127
    codes = away_from_zero(x * inverse(scale))
    return torch.cat((halves(scale), codes.to(torch.int8).view(torch.uint8)), dim=1)


def _decode_q8_0(blocks: "Tensor") -> "Tensor":
    import torch

    return from_halves(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


BLOCK_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "Q4_0": Kind(SHORT, 18, _encode_q4_0, _decode_q4_0),
        "Q4_1": Kind(SHORT, 20, _encode_q4_1, _decode_q4_1),
        "Q5_0": Kind(SHORT, 22, _encode_q5_0, _decode_q5_0),
        "Q5_1": Kind(SHORT, 24, _encode_q5_1, _decode_q5_1),
        "Q8_0": Kind(SHORT, 34, _encode_q8_0, _decode_q8_0),
    }
)
