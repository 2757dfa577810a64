"""GGUF types for weights that are -1, 0 or 1 times one scale per 256: made for models trained so."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.quantize.gguf_layout import (
    SUPER,
    Kind,
    away_from_zero,
    from_halves,
    halves,
    inverse,
    pack_pairs,
    unpack_pairs,
)

if TYPE_CHECKING:
    from torch import Tensor

_RUNS = ((0, 5, 32), (160, 5, 16), (240, 4, 4))  # TQ1_0: the first value, digits in a byte, bytes


def _trits(x: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the scale, the largest magnitude as in ggml, and codes from 0 to 2."""
    scale = x.abs().amax(dim=1, keepdim=True)
    return scale, (away_from_zero(x * inverse(scale)) + 1).byte()


def _encode_tq2_0(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    scale, trits = _trits(x)
    return torch.cat((pack_pairs(trits), halves(scale)), dim=1)


def _decode_tq2_0(blocks: "Tensor") -> "Tensor":
    return from_halves(blocks[:, 64:]) * (unpack_pairs(blocks[:, :64]).float() - 1)


def _encode_tq1_0(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return bytes that are fractions of 256, whose digits to base 3 are the codes, and a half."""
    import torch

    scale, trits = _trits(x)
    packed = []
    for first, digits, count in _RUNS:
        part = trits[:, first : first + digits * count].view(-1, digits, count).int()
        number = (part * (3 ** torch.arange(4, 4 - digits, -1))[:, None]).sum(dim=1)
        packed.append(((number * 256 + 242) // 243).byte())
    return torch.cat((*packed, halves(scale)), dim=1)


def _decode_tq1_0(blocks: "Tensor") -> "Tensor":
    import torch

    codes, start = [], 0
    for _, digits, count in _RUNS:
        part = blocks[:, None, start : start + count].int()
        rest = (part * (3 ** torch.arange(digits))[:, None]) & 255
        codes.append((rest * 3 >> 8).reshape(len(blocks), -1))
        start += count
    return from_halves(blocks[:, start:]) * (torch.cat(codes, dim=1).float() - 1)


TERNARY_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "TQ2_0": Kind(SUPER, 66, _encode_tq2_0, _decode_tq2_0),
        "TQ1_0": Kind(SUPER, 54, _encode_tq1_0, _decode_tq1_0),
    }
)
