"""GGUF types of 256 values ("K"): small integer scales of groups under one or two halves."""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.quantize.gguf_fit import by_group, error_weight, fit_ranged, fit_signed, signed_extreme
from codesign.quantize.gguf_layout import (
    SHORT,
    SUPER,
    Kind,
    from_halves,
    halves,
    inverse,
    pack_bits,
    pack_nibbles,
    pack_pairs,
    unpack_bits,
    unpack_nibbles,
    unpack_pairs,
)

if TYPE_CHECKING:
    from torch import Tensor


# Types with minima: value = step * scale * code - low_step * minimum.


def _integers(values: "Tensor", top: int) -> tuple["Tensor", "Tensor"]:
    """Return the half [blocks, 1] and integers [blocks x groups] that stand for values >= 0 [blocks, groups]."""
    import torch

    step = (values.amax(dim=1, keepdim=True) / top).to(torch.float16)
    return step, (values * inverse(step.float())).round().clamp(0, top).reshape(-1)


def _encode_ranged(
    x: "Tensor", importance: "Tensor | None", bits: int, size: int, scale_top: int
) -> tuple["Tensor", "Tensor", "Tensor", "Tensor"]:
    """Return both halves as bytes [blocks, 4], integer scales and minima [blocks, groups], codes [blocks, 256]."""
    import torch

    top, count = 2**bits - 1, SUPER // size
    groups, weight = by_group(x, size), by_group(error_weight(x, importance), size)
    scale, low = fit_ranged(groups, weight, top)
    step, scales = _integers(scale.view(-1, count), scale_top)
    low_step, minima = _integers(-low.view(-1, count), scale_top)
    steps = tuple(one.float().expand(-1, count).reshape(-1) for one in (step, low_step))
    settled = _settled(groups, weight, steps, (scales, minima), (top, scale_top))
    codes = settled[2].T.reshape(-1, SUPER)
    head = torch.cat((halves(step), halves(low_step)), dim=1)
    return head, settled[0].byte().view(-1, count), settled[1].byte().view(-1, count), codes.byte()


def _settled(
    x: "Tensor",
    weight: "Tensor",
    steps: tuple["Tensor", ...],
    integers: tuple["Tensor", "Tensor"],
    tops: tuple[int, int],
) -> tuple["Tensor", ...]:
    """Return integer scales, minima [groups] and codes [size, groups], with what is next to them if it loses less."""
    import torch

    least = torch.full_like(steps[0], torch.inf)
    best: tuple[Tensor, ...] = (*integers, torch.zeros_like(x))
    for up, low_up in itertools.product((0, 1, -1), repeat=2):
        scale, minimum = ((one + by).clamp_(0, tops[1]) for one, by in zip(integers, (up, low_up), strict=True))
        factor, low = steps[0] * scale, steps[1] * minimum
        codes = ((x + low) * inverse(factor)).round_().clamp_(0, tops[0])
        error = (codes * factor).sub_(low).sub_(x).square_().mul_(weight).sum(0)
        better = error < least
        best = tuple(torch.where(better, new, old) for new, old in zip((scale, minimum, codes), best, strict=True))
        least = torch.where(better, error, least)
    return best


def _decode_ranged(two_halves: "Tensor", scales: "Tensor", minima: "Tensor", codes: "Tensor") -> "Tensor":
    factors = (from_halves(two_halves[:, :2]) * scales.float())[..., None]
    lows = (from_halves(two_halves[:, 2:]) * minima.float())[..., None]
    return (factors * codes.reshape(*scales.shape, -1).float() - lows).reshape(-1, SUPER)


def _encode_q2_k(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return 16 bytes of 4-bit scales and minima, 64 of codes and two halves."""
    import torch

    head, scales, minima, codes = _encode_ranged(x, importance, 2, 16, 15)
    return torch.cat((scales | (minima << 4), pack_pairs(codes), head), dim=1)


def _decode_q2_k(blocks: "Tensor") -> "Tensor":
    small = blocks[:, :16]
    return _decode_ranged(blocks[:, 80:], small & 15, small >> 4, unpack_pairs(blocks[:, 16:80]))


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


def _pack_group_pairs(codes: "Tensor") -> "Tensor":
    """Return 128 bytes of codes [blocks, 256]: low halves from even groups of 32, high halves from odd ones."""
    return pack_nibbles(codes.view(-1, 4, 2 * SHORT)).reshape(-1, 128)


def _unpack_group_pairs(packed: "Tensor") -> "Tensor":
    return unpack_nibbles(packed.reshape(-1, 4, SHORT)).reshape(-1, SUPER)


def _encode_q4_k(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    head, scales, minima, codes = _encode_ranged(x, importance, 4, SHORT, 63)
    return torch.cat((head, _pack_six_bits(scales, minima), _pack_group_pairs(codes)), dim=1)


def _decode_q4_k(blocks: "Tensor") -> "Tensor":
    return _decode_ranged(blocks[:, :4], *_unpack_six_bits(blocks[:, 4:16]), _unpack_group_pairs(blocks[:, 16:]))


def _encode_q5_k(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    head, scales, minima, codes = _encode_ranged(x, importance, 5, SHORT, 63)
    fifth = pack_bits(codes >> 4, across=True)
    return torch.cat((head, _pack_six_bits(scales, minima), fifth, _pack_group_pairs(codes)), dim=1)


def _decode_q5_k(blocks: "Tensor") -> "Tensor":
    codes = _unpack_group_pairs(blocks[:, 48:]) | (unpack_bits(blocks[:, 16:48], across=True) << 4)
    return _decode_ranged(blocks[:, :4], *_unpack_six_bits(blocks[:, 4:16]), codes)


# Types without minima: value = step * scale * code, groups of 16.


def _encode_signed(
    x: "Tensor", importance: "Tensor | None", half: int, scale_half: int
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return the half [blocks, 1], signed scales [blocks, 16] and codes from 0 [blocks, 256]."""
    import torch

    groups, weight = by_group(x, 16), by_group(error_weight(x, importance), 16)
    scale = fit_signed(groups, weight, half).view(-1, 16)
    step = (signed_extreme(scale, 1) / -scale_half).to(torch.float16)
    scales = (scale * inverse(step.float())).round_().clamp_(-scale_half, scale_half - 1)
    steps = step.float().expand(-1, 16).reshape(-1)
    scales, codes = _settled_signed(groups, weight, steps, scales.view(-1), (half, scale_half))
    return step, scales.view(-1, 16), (codes + half).byte().T.reshape(-1, SUPER)


def _settled_signed(
    x: "Tensor", weight: "Tensor", steps: "Tensor", scales: "Tensor", bounds: tuple[int, int]
) -> tuple["Tensor", "Tensor"]:
    """Return integer scales [groups] and codes [size, groups], with what is next to them if it loses less."""
    import torch

    (half, scale_half), least = bounds, torch.full_like(steps, torch.inf)
    best, best_codes = scales, torch.zeros_like(x)
    for by in (0, 1, -1):
        scale = (scales + by).clamp_(-scale_half, scale_half - 1)
        factor = steps * scale
        codes = (x * inverse(factor)).round_().clamp_(-half, half - 1)
        error = (codes * factor).sub_(x).square_().mul_(weight).sum(0)
        better = error < least
        best, best_codes = torch.where(better, scale, best), torch.where(better, codes, best_codes)
        least = torch.where(better, error, least)
    return best, best_codes


def _encode_q3_k(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return 32 bytes of third bits, 64 of pairs of bits, 12 of 6-bit scales and a half."""
    import torch

    step, signed, codes = _encode_signed(x, importance, 4, 32)
    scales = (signed + 32).byte()
    high = (scales >> 4).view(-1, 4, 4) << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    tail = (pack_nibbles(scales), high.sum(dim=1, dtype=torch.uint8), halves(step))
    return torch.cat((pack_bits(codes >> 2, across=True), pack_pairs(codes), *tail), dim=1)


def _decode_q3_k(blocks: "Tensor") -> "Tensor":
    import torch

    high = blocks[:, None, 104:108] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    scales = (unpack_nibbles(blocks[:, 96:104]) | ((high & 3).reshape(-1, 16) << 4)).float() - 32
    codes = unpack_pairs(blocks[:, 32:96]) | (unpack_bits(blocks[:, :32], across=True) << 2)
    factors = (from_halves(blocks[:, 108:]) * scales)[..., None]
    return (factors * (codes.view(-1, 16, 16).float() - 4)).reshape(-1, SUPER)


def _encode_q6_k(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return 128 bytes of low halves, 64 of high pairs of bits, 16 signed scales and a half."""
    import torch

    step, scales, codes = _encode_signed(x, importance, 32, 128)
    low = pack_nibbles(codes.view(-1, 2, 4 * SHORT)).reshape(-1, 128)
    return torch.cat((low, pack_pairs(codes >> 4), scales.to(torch.int8).view(torch.uint8), halves(step)), dim=1)


def _decode_q6_k(blocks: "Tensor") -> "Tensor":
    import torch

    low = unpack_nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, SUPER)
    codes = (low | (unpack_pairs(blocks[:, 128:192]) << 4)).view(-1, 16, 16).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return ((from_halves(blocks[:, 208:]) * scales)[..., None] * codes).reshape(-1, SUPER)


SUPER_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "Q2_K": Kind(SUPER, 84, _encode_q2_k, _decode_q2_k),
        "Q3_K": Kind(SUPER, 110, _encode_q3_k, _decode_q3_k),
        "Q4_K": Kind(SUPER, 144, _encode_q4_k, _decode_q4_k),
        "Q5_K": Kind(SUPER, 176, _encode_q5_k, _decode_q5_k),
        "Q6_K": Kind(SUPER, 210, _encode_q6_k, _decode_q6_k),
    }
)
