"""Codes packed densely into 32-bit words, low bits first, and back: the base of all formats with words."""

from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.numbers import SignedIntegers
from codesign.quantize.round import QuantizedWeight

if TYPE_CHECKING:
    from torch import Tensor

_WORD_BITS = 32


def pack_words(codes: "Tensor", bits: int) -> "Tensor":
    """Return int32 [rows, ceil(columns x bits / 32)] of codes [rows, columns] from 0; a code may span two words."""
    import torch

    values = _padded(codes, _WORD_BITS).int().view(len(codes), -1, _WORD_BITS)
    words = torch.zeros(*values.shape[:2], bits, dtype=torch.int32, device=codes.device)
    for place in range(_WORD_BITS):
        word, offset = divmod(place * bits, _WORD_BITS)
        words[..., word] |= values[..., place] << offset
        if offset + bits > _WORD_BITS:
            words[..., word + 1] |= values[..., place] >> (_WORD_BITS - offset)
    return words.view(len(codes), -1)[:, : -(-codes.shape[1] * bits // _WORD_BITS)].contiguous()


def unpack_words(words: "Tensor", bits: int, columns: int) -> "Tensor":
    """Return uint8 codes [rows, columns] of packed words."""
    import torch

    groups = _padded(words, bits).view(len(words), -1, bits)
    codes = torch.empty(*groups.shape[:2], _WORD_BITS, dtype=torch.uint8, device=words.device)
    for place in range(_WORD_BITS):
        word, offset = divmod(place * bits, _WORD_BITS)
        low = min(bits, _WORD_BITS - offset)
        # The sign is shifted in from above, so that bits are masked after every shift.
        value = (groups[..., word] >> offset) & (2**low - 1)
        if low < bits:
            value = value | ((groups[..., word + 1] & (2 ** (bits - low) - 1)) << low)
        codes[..., place] = value.to(torch.uint8)
    return codes.view(len(words), -1)[:, :columns].contiguous()


def pack_nibbles(codes: "Tensor") -> "Tensor":
    """Return uint8 [rows, columns / 2] of 4-bit codes; the even column is in the low half."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: "Tensor") -> "Tensor":
    """Return the 4-bit codes [rows, columns] of packed bytes."""
    import torch

    return torch.stack((packed & 15, packed >> 4), dim=2).reshape(len(packed), -1)


def from_zero(weight: QuantizedWeight, codec: object) -> tuple["Tensor", "Tensor"]:
    """Return uint8 codes [n, k] and zero points [n, groups], both counted from 0, of integers with or without them."""
    import torch

    assert weight.scales is not None
    if isinstance(codec, SignedIntegers):
        half = 2 ** (codec.bits - 1)
        zeros = torch.full(weight.scales.stored.shape, half, dtype=torch.uint8)
        return (weight.codes.short() + half).to(torch.uint8), zeros
    assert weight.scales.zero_points is not None
    return weight.codes, weight.scales.zero_points


def as_stored(scales: "Tensor", dtype: "Tensor") -> "Tensor":
    """Return scales in the type of a file; one that would change is refused, because codes were chosen for it."""
    converted = scales.to(dtype)
    if not bool((converted.float() == scales.float()).all()):
        raise InputError(
            f"Scales in {scales.dtype} do not fit {dtype}, which this format stores. "
            f"Quantize the weights as {dtype}, so that codes are chosen for the scales that are stored."
        )
    return converted


def _padded(rows: "Tensor", multiple: int) -> "Tensor":
    import torch

    missing = -rows.shape[1] % multiple
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows
