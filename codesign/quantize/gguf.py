"""Blocks of GGUF files. Layouts and searches: ggml-org/ggml, src/ggml-common.h and src/ggml-quants.c."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.round import check_finite, check_matrix
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_SHORT, _SUPER = 32, 256
_CHUNK_VALUES = 1 << 18
_SCALE_MAX = 63  # six bits


@dataclass(frozen=True, slots=True, eq=False)
class GgufWeight:
    """A weight matrix [n, k] as rows of blocks: uint8 [n, bytes of a row]."""

    rows: "Tensor"
    scheme: Scheme
    shape: tuple[int, int]

    def dequantize(self) -> "Tensor":
        """Return the float32 values [n, k]."""
        kind = _KINDS[self.scheme.name]
        return kind.decode(self.rows.reshape(-1, kind.byte_count)).reshape(self.shape)


def quantize_gguf(w: "Tensor", scheme: Scheme, importance: "Tensor | None" = None) -> GgufWeight:
    """Return the floats [n, k] in blocks of a GGUF type; `importance` [k] weighs the errors of the K types.

    Source of the searches: make_qx_quants and make_qkx2_quants of ggml-quants.c.
    """
    import torch

    check_matrix(w)
    check_finite(w)
    kind = _KINDS.get(scheme.name)
    if kind is None:
        raise InputError(f"{scheme} has no encoder here. Use one of {', '.join(_KINDS)}.")
    n, k = w.shape
    if k % kind.values:
        raise InputError(
            f"{scheme} stores rows in blocks of {kind.values}, which does not divide {k}. Use Q8_0 or Q4_0."
        )
    step = max(_CHUNK_VALUES // k, 1)
    parts = []
    for first in range(0, n, step):
        part = w[first : first + step].float()
        weight = torch.ones_like(part) if importance is None else importance.float().expand_as(part)
        blocks = kind.encode(part.reshape(-1, kind.values), weight.reshape(-1, kind.values))
        parts.append(blocks.reshape(len(part), -1))
    return GgufWeight(torch.cat(parts), scheme, (n, k))


def _halves(values: "Tensor") -> "Tensor":
    """Return the two bytes of each value as a half [blocks, 2 x columns]."""
    import torch

    return values.to(torch.float16).contiguous().view(torch.uint8)


def _from_halves(two_bytes: "Tensor") -> "Tensor":
    import torch

    return two_bytes.contiguous().view(torch.float16).float()


def _inverse(scale: "Tensor") -> "Tensor":
    import torch

    return torch.where(scale == 0, 0.0, 1 / scale)


def _signed_extreme(x: "Tensor") -> "Tensor":
    """Return the value [.., 1] with the largest magnitude, the first of several."""
    return x.gather(-1, x.abs().argmax(dim=-1, keepdim=True))


# Types of 32 values: one or two halves, then the codes. Codes are chosen for the exact scale, not for the stored half:
# so does ggml, and files are to be equal byte by byte.


def _encode_signed(x: "Tensor", bits: int) -> tuple["Tensor", "Tensor"]:
    """Return scales and codes from 0 of types that map the signed extreme to the lowest code."""
    half = 2 ** (bits - 1)
    scale = _signed_extreme(x) / -half
    codes = (x * _inverse(scale) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
    return scale, codes.byte()


def _encode_ranged(x: "Tensor", bits: int) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return scales, minima and codes of types with a minimum."""
    low = x.amin(dim=1, keepdim=True)
    scale = (x.amax(dim=1, keepdim=True) - low) / (2**bits - 1)
    codes = ((x - low) * _inverse(scale) + 0.5).trunc().clamp(0, 2**bits - 1)
    return scale, low, codes.byte()


def _nibble_halves(codes: "Tensor") -> "Tensor":
    """Return bytes whose low halves are the first 16 codes, and high halves the last 16."""
    return (codes[:, :16] & 15) | ((codes[:, 16:] & 15) << 4)


def _from_nibble_halves(packed: "Tensor") -> "Tensor":
    import torch

    return torch.cat((packed & 15, packed >> 4), dim=1)


def _fifth_bits(codes: "Tensor") -> "Tensor":
    """Return the four bytes of the fifth bits of 32 codes, low bits first."""
    import torch

    bits = (codes >> 4).view(-1, 4, 8).int()
    return (bits << torch.arange(8, dtype=torch.int32)).sum(dim=2).byte()


def _from_fifth_bits(packed: "Tensor") -> "Tensor":
    import torch

    return ((packed[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1).reshape(-1, _SHORT) << 4


def _encode_q4_0(x: "Tensor", importance: "Tensor") -> "Tensor":
    import torch

    scale, codes = _encode_signed(x, 4)
    return torch.cat((_halves(scale), _nibble_halves(codes)), dim=1)


def _decode_q4_0(blocks: "Tensor") -> "Tensor":
    return _from_halves(blocks[:, :2]) * (_from_nibble_halves(blocks[:, 2:]).float() - 8)


def _encode_q4_1(x: "Tensor", importance: "Tensor") -> "Tensor":
    import torch

    scale, low, codes = _encode_ranged(x, 4)
    return torch.cat((_halves(scale), _halves(low), _nibble_halves(codes)), dim=1)


def _decode_q4_1(blocks: "Tensor") -> "Tensor":
    scale, low = _from_halves(blocks[:, :2]), _from_halves(blocks[:, 2:4])
    return scale * _from_nibble_halves(blocks[:, 4:]).float() + low


def _encode_q5_0(x: "Tensor", importance: "Tensor") -> "Tensor":
    import torch

    scale, codes = _encode_signed(x, 5)
    return torch.cat((_halves(scale), _fifth_bits(codes), _nibble_halves(codes)), dim=1)


def _decode_q5_0(blocks: "Tensor") -> "Tensor":
    codes = _from_nibble_halves(blocks[:, 6:]) | _from_fifth_bits(blocks[:, 2:6])
    return _from_halves(blocks[:, :2]) * (codes.float() - 16)


def _encode_q5_1(x: "Tensor", importance: "Tensor") -> "Tensor":
    import torch

    scale, low, codes = _encode_ranged(x, 5)
    return torch.cat((_halves(scale), _halves(low), _fifth_bits(codes), _nibble_halves(codes)), dim=1)


def _decode_q5_1(blocks: "Tensor") -> "Tensor":
    codes = _from_nibble_halves(blocks[:, 8:]) | _from_fifth_bits(blocks[:, 4:8])
    return _from_halves(blocks[:, :2]) * codes.float() + _from_halves(blocks[:, 2:4])


def _encode_q8_0(x: "Tensor", importance: "Tensor") -> "Tensor":
    """Return a half and 32 signed bytes; ties away from zero, as C's roundf."""
    import torch

    scale = x.abs().amax(dim=1, keepdim=True) / 127
    scaled = x * _inverse(scale)
    magnitude = scaled.abs()
    whole = magnitude.floor()
    rounded = scaled.sign() * (whole + (2 * (magnitude - whole)).floor())
    return torch.cat((_halves(scale), rounded.to(torch.int8).view(torch.uint8)), dim=1)


def _decode_q8_0(blocks: "Tensor") -> "Tensor":
    import torch

    return _from_halves(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


# Types of 256 values: small integer scales of groups under one or two halves.


def _fit_ranged(x: "Tensor", weight: "Tensor", top: int) -> tuple["Tensor", "Tensor"]:
    """Return scales and minima, at most 0, of groups [.., size] with the least weighted squared error.

    For each of some steps the codes are fixed and scale and minimum solved for: make_qkx2_quants of ggml-quants.c.
    """
    import torch

    low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True)
    scale, least = (high - low) / top, torch.full_like(low, torch.inf)
    best_low = low.clone()
    span = torch.where(high > low, high - low, 1.0)
    sum_w, sum_x = weight.sum(-1, keepdim=True), (weight * x).sum(-1, keepdim=True)
    for step in range(21):
        codes = ((top - 1 + step / 10) / span * (x - low)).round().clamp(0, top)
        weighted = weight * codes
        sum_l, sum_l2 = weighted.sum(-1, keepdim=True), (weighted * codes).sum(-1, keepdim=True)
        sum_xl = (weighted * x).sum(-1, keepdim=True)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        tried = (sum_w * sum_xl - sum_x * sum_l) / determinant
        tried_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = tried_low > 0
        tried = torch.where(positive, sum_xl / sum_l2, tried)
        tried_low = tried_low.clamp(max=0)
        error = (weight * (tried * codes + tried_low - x).square()).sum(-1, keepdim=True)
        better = (determinant > 0) & (error < least)
        scale, best_low = torch.where(better, tried, scale), torch.where(better, tried_low, best_low)
        least = torch.where(better, error, least)
    return scale.squeeze(-1), best_low.squeeze(-1)


def _fit_signed(x: "Tensor", weight: "Tensor", half: int) -> "Tensor":
    """Return signed scales of groups [.., size] with the least weighted squared error.

    Source: make_qx_quants of ggml-quants.c.
    """
    import torch

    extreme = _signed_extreme(x)
    best, gain = torch.zeros_like(extreme), torch.full_like(extreme, -1.0)
    for step in range(-9, 10):
        codes = (x * _inverse(extreme / -(half + step / 10))).round().clamp(-half, half - 1)
        sum_xl = (weight * x * codes).sum(-1, keepdim=True)
        sum_l2 = (weight * codes * codes).sum(-1, keepdim=True)
        # The error falls by sum_xl^2 / sum_l2 from that of all zeros.
        tried = torch.where(sum_l2 > 0, sum_xl * sum_xl / sum_l2, 0.0)
        better = (tried > gain) & (sum_l2 > 0)
        best, gain = torch.where(better, sum_xl / sum_l2, best), torch.where(better, tried, gain)
    return best.squeeze(-1)


def _six_bits(values: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the half [blocks, 1] and the 6-bit integers [blocks, 8] that stand for values that are not negative."""
    import torch

    step = (values.amax(dim=1, keepdim=True) / _SCALE_MAX).to(torch.float16)
    return step, (values * _inverse(step.float())).round().clamp(0, _SCALE_MAX).byte()


def _pack_six_bits(scales: "Tensor", minima: "Tensor") -> "Tensor":
    """Return the 12 bytes of eight 6-bit scales and minima: get_scale_min_k4 of ggml-quants.c, backwards."""
    import torch

    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    return torch.cat((first, second, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)), dim=1)


def _unpack_six_bits(packed: "Tensor") -> tuple["Tensor", "Tensor"]:
    import torch

    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    return scales, torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Ranged:
    """The parts of a block with minima: halves, packed 6-bit integers and codes [blocks, 8, 32]."""

    head: "Tensor"
    codes: "Tensor"


def _encode_ranged_super(x: "Tensor", importance: "Tensor", bits: int) -> _Ranged:
    import torch

    groups = x.view(-1, 8, _SHORT)
    typical = groups.square().mean(dim=-1, keepdim=True).sqrt()
    scale, low = _fit_ranged(groups, importance.view_as(groups) * (typical + groups.abs()), 2**bits - 1)
    step, scales = _six_bits(scale)
    low_step, minima = _six_bits(-low)
    factors = (step.float() * scales)[..., None]
    codes = ((groups + (low_step.float() * minima)[..., None]) * _inverse(factors)).round().clamp(0, 2**bits - 1)
    head = torch.cat((_halves(step), _halves(low_step), _pack_six_bits(scales, minima)), dim=1)
    return _Ranged(head, codes.byte())


def _paired_nibbles(codes: "Tensor") -> "Tensor":
    """Return 128 bytes of codes [blocks, 8, 32]: low halves from even groups, high halves from odd ones."""
    low = codes & 15
    return (low[:, 0::2] | (low[:, 1::2] << 4)).reshape(len(codes), -1)


def _from_paired_nibbles(packed: "Tensor") -> "Tensor":
    import torch

    pairs = packed.reshape(len(packed), 4, 1, _SHORT)
    return torch.cat((pairs & 15, pairs >> 4), dim=2).reshape(len(packed), 8, _SHORT)


def _decode_ranged_super(head: "Tensor", codes: "Tensor") -> "Tensor":
    scales, minima = _unpack_six_bits(head[:, 4:])
    factors = (_from_halves(head[:, :2]) * scales.float())[..., None]
    lows = (_from_halves(head[:, 2:4]) * minima.float())[..., None]
    return (factors * codes.float() - lows).reshape(-1, _SUPER)


def _encode_q4_k(x: "Tensor", importance: "Tensor") -> "Tensor":
    import torch

    parts = _encode_ranged_super(x, importance, 4)
    return torch.cat((parts.head, _paired_nibbles(parts.codes)), dim=1)


def _decode_q4_k(blocks: "Tensor") -> "Tensor":
    return _decode_ranged_super(blocks[:, :16], _from_paired_nibbles(blocks[:, 16:]))


def _encode_q5_k(x: "Tensor", importance: "Tensor") -> "Tensor":
    import torch

    parts = _encode_ranged_super(x, importance, 5)
    fifth = ((parts.codes >> 4).int() << torch.arange(8, dtype=torch.int32)[:, None]).sum(dim=1).byte()
    return torch.cat((parts.head, fifth, _paired_nibbles(parts.codes)), dim=1)


def _decode_q5_k(blocks: "Tensor") -> "Tensor":
    import torch

    fifth = (blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    return _decode_ranged_super(blocks[:, :16], _from_paired_nibbles(blocks[:, 48:]) | (fifth << 4))


def _encode_q6_k(x: "Tensor", importance: "Tensor") -> "Tensor":
    """Return 128 bytes of low halves, 64 of high pairs of bits, 16 signed scales and a half."""
    import torch

    groups = x.view(-1, 16, 16)
    scale = _fit_signed(groups, importance.view_as(groups) * groups.square(), 32)
    step = (_signed_extreme(scale) / -128).to(torch.float16)
    scales = (scale * _inverse(step.float())).round().clamp(-128, 127)
    codes = (groups * _inverse(step.float() * scales)[..., None]).round().clamp(-32, 31) + 32
    quarters = codes.byte().view(-1, 2, 4, _SHORT)
    low = (quarters[:, :, :2] & 15) | ((quarters[:, :, 2:] & 15) << 4)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.int32)[:, None]
    high = ((quarters >> 4).int() << shifts).sum(dim=2).byte()
    tail = (scales.to(torch.int8).view(torch.uint8), _halves(step))
    return torch.cat((low.reshape(-1, 128), high.reshape(-1, 64), *tail), dim=1)


def _decode_q6_k(blocks: "Tensor") -> "Tensor":
    import torch

    low = blocks[:, :128].reshape(-1, 2, 2, _SHORT)
    low = torch.cat((low & 15, low >> 4), dim=2)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, _SHORT) >> shifts) & 3
    codes = (low | (high << 4)).reshape(-1, 16, 16).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return ((_from_halves(blocks[:, 208:]) * scales)[..., None] * codes).reshape(-1, _SUPER)


@dataclass(frozen=True, slots=True)
class _Kind:
    values: int
    byte_count: int
    encode: Callable[["Tensor", "Tensor"], "Tensor"]
    decode: Callable[["Tensor"], "Tensor"]


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "Q4_0": _Kind(_SHORT, 18, _encode_q4_0, _decode_q4_0),
        "Q4_1": _Kind(_SHORT, 20, _encode_q4_1, _decode_q4_1),
        "Q5_0": _Kind(_SHORT, 22, _encode_q5_0, _decode_q5_0),
        "Q5_1": _Kind(_SHORT, 24, _encode_q5_1, _decode_q5_1),
        "Q8_0": _Kind(_SHORT, 34, _encode_q8_0, _decode_q8_0),
        "Q4_K": _Kind(_SUPER, 144, _encode_q4_k, _decode_q4_k),
        "Q5_K": _Kind(_SUPER, 176, _encode_q5_k, _decode_q5_k),
        "Q6_K": _Kind(_SUPER, 210, _encode_q6_k, _decode_q6_k),
    }
)
ENCODED_TYPES = tuple(_KINDS)
