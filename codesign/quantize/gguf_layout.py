"""How codes lie in the blocks of GGUF files. Source: ggml-org/ggml, src/ggml-common.h and src/ggml-quants.c."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SHORT, SUPER = 32, 256
Encode = Callable[["Tensor", "Tensor | None"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of blocks: `encode(x [blocks, values], importance)` gives uint8 [blocks, byte_count], `decode` floats.

    A call of `encode` is given about `chunk_values` values, so that what it searches through stays in the cache.
    """

    values: int
    byte_count: int
    encode: Encode
    decode: Callable[["Tensor"], "Tensor"]
    chunk_values: int = 1 << 17


def halves(values: "Tensor") -> "Tensor":
    """Return the two bytes of each value as a half [blocks, 2 x columns]."""
    import torch

    stored = values.to(torch.float16)
    if not stored.isfinite().all():
        raise InputError(
            "The weights are too large for GGUF, whose scales are half-precision floats (at most 65504): "
            "divide the layer by a constant, or leave it in BF16."
        )
    return stored.contiguous().view(torch.uint8)


def from_halves(two_bytes: "Tensor") -> "Tensor":
    """Return the floats of pairs of bytes."""
    import torch

    return two_bytes.contiguous().view(torch.float16).float()


def inverse(scale: "Tensor") -> "Tensor":
    """Return 1 / scale, and 0 where the scale is 0 or so small that its inverse is infinite."""
    import torch

    inverted = 1 / scale
    return torch.where(inverted.isfinite(), inverted, 0.0)


def away_from_zero(values: "Tensor") -> "Tensor":
    """Return rounded values, ties away from zero as C's roundf."""
    magnitude = values.abs()
    whole = magnitude.floor()
    return values.sign() * (whole + (2 * (magnitude - whole)).floor())


def pack_nibbles(codes: "Tensor") -> "Tensor":
    """Return bytes [.., size / 2] whose low halves are the first half of the codes [.., size]."""
    middle = codes.shape[-1] // 2
    return (codes[..., :middle] & 15) | ((codes[..., middle:] & 15) << 4)


def unpack_nibbles(packed: "Tensor") -> "Tensor":
    """Return codes [.., size] of bytes [.., size / 2]: first all low halves, then all high halves."""
    import torch

    return torch.cat((packed & 15, packed >> 4), dim=-1)


def pack_alternating(codes: "Tensor") -> "Tensor":
    """Return bytes [blocks, size / 2] whose low halves are the even codes [blocks, size]."""
    return (codes[:, 0::2] & 15) | ((codes[:, 1::2] & 15) << 4)


def unpack_alternating(packed: "Tensor") -> "Tensor":
    """Return codes [blocks, size] of bytes [blocks, size / 2], low halves first."""
    import torch

    return torch.stack((packed & 15, packed >> 4), dim=2).reshape(len(packed), -1)


def pack_pairs(codes: "Tensor") -> "Tensor":
    """Return 64 bytes of 2-bit codes [blocks, 256]: each byte has the codes at four places 32 apart."""
    import torch

    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    return ((codes.reshape(-1, 2, 4, SHORT) & 3) << shifts).sum(dim=2, dtype=torch.uint8).reshape(-1, 64)


def unpack_pairs(packed: "Tensor") -> "Tensor":
    """Return the 2-bit codes [blocks, 256] of 64 bytes."""
    import torch

    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    return ((packed.reshape(-1, 2, 1, SHORT) >> shifts) & 3).reshape(-1, SUPER)


def pack_bits(bits: "Tensor", across: bool = False) -> "Tensor":
    """Return bytes of bits, low first: of eight neighbours [.., 8], or `across` the places 32 apart [blocks, 256]."""
    import torch

    shifts = torch.arange(8, dtype=torch.uint8)
    if across:
        return (bits.reshape(-1, 8, SHORT) << shifts[:, None]).sum(dim=1, dtype=torch.uint8)
    return (bits.reshape(len(bits), -1, 8) << shifts).sum(dim=2, dtype=torch.uint8)


def unpack_bits(packed: "Tensor", across: bool = False) -> "Tensor":
    """Return the bits [blocks, 8 x bytes] that `pack_bits` packed."""
    import torch

    shifts = torch.arange(8, dtype=torch.uint8)
    if across:
        return ((packed[:, None] >> shifts[:, None]) & 1).reshape(len(packed), -1)
    return ((packed[..., None] >> shifts) & 1).reshape(len(packed), -1)
