"""Searches for the scale of a group that loses least. Groups are columns [size, groups]: sums run along memory."""

import itertools
from typing import TYPE_CHECKING

from codesign.quantize.gguf_layout import inverse

if TYPE_CHECKING:
    from torch import Tensor

# What is tried as the largest magnitude of a group, in parts of the last code or level: beyond 1 it is cut off.
_PARTS = tuple(percent / 100 for percent in range(79, 134, 3))
_LEVEL_PARTS = tuple(percent / 100 for percent in range(95, 130, 5))


def by_group(x: "Tensor", size: int) -> "Tensor":
    """Return values [blocks, values] as groups of `size` [size, groups]."""
    return x.reshape(-1, size).T.contiguous()


def signed_extreme(x: "Tensor", dim: int) -> "Tensor":
    """Return the value with the largest magnitude along a dimension, which is kept; the positive one of two."""
    import torch

    high, low = x.amax(dim=dim, keepdim=True), x.amin(dim=dim, keepdim=True)
    return torch.where(high >= -low, high, low)


def error_weight(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return what squared errors of values [blocks, values] weigh: large values a little more, and by importance.

    Source: importance * sqrt(2 * mean(x^2) + x^2), as in quantize_row_q3_K_impl of ggml-quants.c.
    """
    square = x.square()
    weight = (2 * square.mean(dim=1, keepdim=True) + square).sqrt()
    return weight if importance is None else importance * weight


def fit_ranged(x: "Tensor", weight: "Tensor", top: int) -> tuple["Tensor", "Tensor"]:
    """Return scales and minima, at most 0, of groups [size, groups] with the least weighted squared error.

    For each of some steps the codes are fixed and scale and minimum solved for: make_qkx2_quants of ggml-quants.c.
    """
    import torch

    low, high = x.amin(dim=0).clamp(max=0), x.amax(dim=0)
    scale, best_low, most = (high - low) / top, low, torch.full_like(low, -torch.inf)
    per_span, above = inverse(high - low), x - low
    weighted_x = weight * x
    sum_w, sum_x = weight.sum(0), weighted_x.sum(0)
    for part in _PARTS:
        codes = (above * (top * part * per_span)).round_().clamp_(0, top)
        weighted = weight * codes
        sum_l, sum_l2, sum_xl = weighted.sum(0), weighted.mul_(codes).sum(0), codes.mul_(weighted_x).sum(0)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        tried = (sum_w * sum_xl - sum_x * sum_l) / determinant
        tried_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        tried = torch.where(tried_low > 0, sum_xl / sum_l2, tried)
        tried_low = tried_low.clamp_(max=0)
        gain = tried * sum_xl + tried_low * sum_x  # by so much the error is below that of all zeros
        better = (determinant > 0) & (gain > most)
        scale, best_low = torch.where(better, tried, scale), torch.where(better, tried_low, best_low)
        most = torch.where(better, gain, most)
    return scale, best_low


def fit_signed(x: "Tensor", weight: "Tensor", half: int) -> "Tensor":
    """Return signed scales of groups [size, groups] with the least weighted squared error.

    Source: make_qx_quants of ggml-quants.c.
    """
    import torch

    extreme = inverse(signed_extreme(x, 0)[0])
    best, most = torch.zeros_like(extreme), torch.full_like(extreme, -1.0)
    weighted_x = weight * x
    for part in _PARTS:
        codes = (x * (extreme * -(half * part))).round_().clamp_(-half, half - 1)
        sum_xl, sum_l2 = (weighted_x * codes).sum(0), codes.square_().mul_(weight).sum(0)
        best, most = better_scale(best, most, sum_xl, sum_l2)
    return best


def fit_levels(x: "Tensor", weight: "Tensor", levels: "Levels") -> "Tensor":
    """Return signed scales of groups [size, groups] whose values are rounded to levels, with the least weighted error.

    Source: quantize_row_iq4_nl_impl of ggml-quants.c.
    """
    import torch

    extreme = inverse(signed_extreme(x, 0)[0])
    best, most = torch.zeros_like(extreme), torch.full_like(extreme, -1.0)
    weighted_x = weight * x
    for target in levels.targets:
        rounded = levels.nearest(x * (extreme * target))
        sum_xl, sum_l2 = (weighted_x * rounded).sum(0), rounded.square_().mul_(weight).sum(0)
        best, most = better_scale(best, most, sum_xl, sum_l2)
    return best


def better_scale(best: "Tensor", most: "Tensor", sum_xl: "Tensor", sum_l2: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return scales and gains where sum_xl / sum_l2 gains more: sum_xl^2 / sum_l2 below the error of all zeros."""
    import torch

    gain = torch.where(sum_l2 > 0, sum_xl * sum_xl / sum_l2, -1.0)
    better = gain > most
    return torch.where(better, sum_xl / sum_l2, best), torch.where(better, gain, most)


class Levels:
    """Integer levels from lowest to highest, found through a table of steps of one half, where all middles lie."""

    def __init__(self, values: tuple[int, ...]) -> None:
        import torch

        self.values = values
        self.targets = tuple(level * part for level in (values[0], values[-1]) for part in _LEVEL_PARTS)
        self._first = 2 * values[0]
        middles = torch.tensor([low + high for low, high in itertools.pairwise(values)])
        places = torch.arange(self._first, 2 * values[-1] + 1)
        self._code_at = (places[:, None] >= middles).sum(dim=1).byte()
        self._level_at = torch.tensor(values, dtype=torch.float32)[self._code_at.int()]

    def nearest(self, scaled: "Tensor") -> "Tensor":
        """Return the nearest levels as floats."""
        return self._level_at.index_select(0, self._places(scaled)).view_as(scaled)

    def codes(self, scaled: "Tensor") -> "Tensor":
        """Return the numbers of the nearest levels."""
        return self._code_at.index_select(0, self._places(scaled)).view_as(scaled)

    def _places(self, scaled: "Tensor") -> "Tensor":
        """Return where in the table values are; those below or above all levels are at its ends."""
        last = len(self._code_at) - 1
        return (scaled * 2).floor_().sub_(self._first).clamp_(0, last).int().reshape(-1)
