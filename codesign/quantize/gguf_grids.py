"""GGUF types whose codes are numbers of points of a grid in 4 or 8 dimensions, with signs beside them.

The grids are those that the gguf package carries. Source of the search: quantize_row_iq3_s_impl and its like in
ggml-quants.c; the nearest points are taken from a table by the cell that a vector lies in.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.gguf_fit import Levels, better_scale, error_weight
from codesign.quantize.gguf_layout import (
    SUPER,
    Kind,
    from_halves,
    halves,
    inverse,
    pack_alternating,
    pack_bits,
    unpack_alternating,
    unpack_bits,
)

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = tuple(percent / 100 for percent in range(70, 125, 5))  # of the largest magnitude over the last level
_NEAR_COUNT = 12  # so many points next to a cell are compared with the errors weighed
_SCALE_TOP = 15
_SIGNS = 8  # values whose signs are one byte, or seven bits where their number is even


@dataclass(frozen=True, slots=True)
class _Grid:
    """A grid type: groups of `size` values have the scale half * (first + step * integer).

    `even` says that the number of minus signs among eight values is even, so that the last one is not stored.
    """

    name: str
    size: int
    first: float
    step: float
    even: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Codebook:
    """Points [count, dimension], their levels along an axis, and the nearest points of each cell [cells, near]."""

    points: "Tensor"
    levels: Levels
    nearest: "Tensor"
    powers: "Tensor"

    def cells(self, scaled: "Tensor") -> "Tensor":
        """Return the cells of vectors [vectors, dimension]."""
        cells: Tensor = (self.levels.codes(scaled).int() * self.powers).sum(dim=1, dtype=self.powers.dtype)
        return cells


@functools.cache
def _codebook(name: str) -> _Codebook:
    """Return the grid of a type as the gguf package has it."""
    import torch

    try:
        from gguf import quants
    except ImportError as error:
        raise InputError(f"{name} needs the grid in the package gguf: pip install gguf.") from error
    owner = getattr(quants, name)
    owner.init_grid()
    points = torch.from_numpy(owner.grid.copy()).reshape(owner.grid_shape)
    values, dimension = tuple(int(value) for value in owner.grid_map), points.shape[1]
    powers = len(values) ** torch.arange(dimension, dtype=torch.int32)
    axis = torch.tensor(values, dtype=torch.float32)
    cells = axis[(torch.arange(len(values) ** dimension)[:, None] // powers) % len(values)]
    nearest = torch.cdist(cells, points).topk(_NEAR_COUNT, largest=False, sorted=True).indices
    return _Codebook(points, Levels(values), nearest.int(), powers)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a search found: halves [blocks, 1], scales [blocks, groups], points [blocks, vectors], minus signs."""

    step: "Tensor"
    scales: "Tensor"
    points: "Tensor"
    minus: "Tensor"


def _search(grid: _Grid, x: "Tensor", importance: "Tensor | None") -> _Found:
    """Return the codes of values [blocks, 256]."""
    import torch

    book, weight = _codebook(grid.name), error_weight(x, importance)
    minus = _minus_signs(x, weight, grid.even)
    y = torch.where(minus, -x, x).reshape(-1, grid.size)
    weight = weight.reshape(-1, grid.size)
    scale = _fit(book, y, weight).view(len(x), -1)
    top = grid.first + grid.step * _SCALE_TOP
    step = (scale.amax(dim=1, keepdim=True) / top).to(torch.float16)
    steps = step.float().expand_as(scale).reshape(-1)
    near = ((scale.reshape(-1) * inverse(steps) - grid.first) / grid.step).round_()
    scales, points = _settled(grid, y, weight, steps, near)
    return _Found(step, scales.byte().view_as(scale), points.view(len(x), -1), minus)


def _minus_signs(x: "Tensor", weight: "Tensor", even: bool) -> "Tensor":
    """Return which values are negative; an even number of each eight, by turning the one that matters least."""
    minus = x < 0
    if not even:
        return minus
    by_eight = minus.view(-1, _SIGNS)
    least = (weight * x.square()).view(-1, _SIGNS).argmin(dim=1, keepdim=True)
    odd = by_eight.sum(dim=1, keepdim=True) % 2 == 1
    return by_eight.scatter(1, least, by_eight.gather(1, least) ^ odd).view_as(minus)


def _fit(book: _Codebook, y: "Tensor", weight: "Tensor") -> "Tensor":
    """Return the scales of groups [groups, size] with the least error when vectors go to the nearest point."""
    import torch

    largest = inverse(y.amax(dim=1, keepdim=True))
    best, most = torch.zeros_like(largest[:, 0]), torch.full_like(largest[:, 0], -1.0)
    weighted_y, first = weight * y, book.nearest[:, 0].contiguous()
    for part in _PARTS:
        cells = book.cells((y * (largest * (book.levels.values[-1] * part))).view(-1, book.points.shape[1]))
        rounded = book.points.index_select(0, first.index_select(0, cells)).view_as(y)
        sum_yl, sum_l2 = (weighted_y * rounded).sum(1), rounded.square_().mul_(weight).sum(1)
        best, most = better_scale(best, most, sum_yl, sum_l2)
    return best


def _settled(
    grid: _Grid, y: "Tensor", weight: "Tensor", steps: "Tensor", scales: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """Return integer scales [groups] and points [groups, vectors], with the scale next to it if it loses less."""
    import torch

    book, least = _codebook(grid.name), torch.full_like(steps, torch.inf)
    best, best_points = scales, torch.zeros(len(y), y.shape[1] // book.points.shape[1], dtype=torch.int32)
    for by in (0, 1, -1):
        scale = (scales + by).clamp_(0, _SCALE_TOP)
        points, error = _assigned(book, y, weight, steps * (grid.first + grid.step * scale))
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
        best_points = torch.where(better[:, None], points, best_points)
    return best, best_points


def _assigned(book: _Codebook, y: "Tensor", weight: "Tensor", scale: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the points [groups, vectors] that lose least at given scales, and the error of each group."""
    dimension = book.points.shape[1]
    vectors, count = y.view(-1, dimension), y.shape[1] // dimension
    cells = book.cells((y * inverse(scale)[:, None]).view(-1, dimension))
    near = book.nearest.index_select(0, cells)
    points = book.points.index_select(0, near.view(-1)).view(len(vectors), -1, dimension)
    factor = scale.repeat_interleave(count)[:, None, None]
    error = points.mul_(factor).sub_(vectors[:, None]).square_().mul_(weight.view(-1, 1, dimension)).sum(dim=2)
    least, place = error.min(dim=1, keepdim=True)
    return near.gather(1, place).view(-1, count), least.view(-1, count).sum(dim=1)


def _values(grid: _Grid, step: "Tensor", scales: "Tensor", points: "Tensor", minus: "Tensor") -> "Tensor":
    """Return the floats [blocks, 256] of halves, integer scales, points and bits of minus signs."""
    import torch

    factors = from_halves(step) * (grid.first + grid.step * scales.float())
    rounded = _codebook(grid.name).points[points.int().reshape(-1)].view(*scales.shape, -1) * factors[..., None]
    rounded = rounded.reshape(-1, SUPER)
    return torch.where(minus.bool(), -rounded, rounded)


def _words(minus: "Tensor", scales: "Tensor") -> "Tensor":
    """Return words of four times seven signs and a scale [blocks, 32 bytes]: IQ2_XXS and IQ3_XXS."""
    import torch

    sevens = (pack_bits(minus.byte()).view(len(scales), -1, 4) & 127).long()
    word = (sevens << torch.tensor([0, 7, 14, 21])).sum(dim=2) | (scales.long() << 28)
    return word.to(torch.uint32).view(torch.uint8).reshape(len(scales), -1)


def _from_words(packed: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return scales [blocks, 8] and minus signs [blocks, 256]."""
    import torch

    word = packed.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    sevens = ((word[..., None] >> torch.tensor([0, 7, 14, 21])) & 127).reshape(len(word), -1)
    return word >> 28, _even_signs(sevens)


def _even_signs(sevens: "Tensor") -> "Tensor":
    """Return eight bits [blocks, 8 x count] of seven stored ones: their number is even."""
    import torch

    bits = (sevens[..., None] >> torch.arange(7)) & 1
    return torch.cat((bits, bits.sum(dim=-1, keepdim=True) & 1), dim=-1).reshape(len(sevens), -1)


_IQ3_S = _Grid("IQ3_S", 32, 1.0, 2.0, even=False)
_IQ3_XXS = _Grid("IQ3_XXS", 32, 0.25, 0.5, even=True)
_IQ2_S = _Grid("IQ2_S", 16, 0.125, 0.25, even=False)
_IQ2_XS = _Grid("IQ2_XS", 16, 0.125, 0.25, even=True)
_IQ2_XXS = _Grid("IQ2_XXS", 32, 0.125, 0.25, even=True)


def _encode_iq3_s(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    found = _search(_IQ3_S, x, importance)
    parts = (found.points.byte(), pack_bits((found.points >> 8).byte()), pack_bits(found.minus.byte()))
    return torch.cat((halves(found.step), *parts, pack_alternating(found.scales)), dim=1)


def _decode_iq3_s(blocks: "Tensor") -> "Tensor":
    points = blocks[:, 2:66].int() | (unpack_bits(blocks[:, 66:74]).int() << 8)
    scales = unpack_alternating(blocks[:, 106:])
    return _values(_IQ3_S, blocks[:, :2], scales, points, unpack_bits(blocks[:, 74:106]))


def _encode_iq3_xxs(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    found = _search(_IQ3_XXS, x, importance)
    return torch.cat((halves(found.step), found.points.byte(), _words(found.minus, found.scales)), dim=1)


def _decode_iq3_xxs(blocks: "Tensor") -> "Tensor":
    scales, minus = _from_words(blocks[:, 66:])
    return _values(_IQ3_XXS, blocks[:, :2], scales, blocks[:, 2:66], minus)


def _encode_iq2_s(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    import torch

    found = _search(_IQ2_S, x, importance)
    high = (found.points >> 8).view(-1, 8, 4) << torch.tensor([0, 2, 4, 6], dtype=torch.int32)
    parts = (found.points.byte(), pack_bits(found.minus.byte()), high.sum(dim=2).byte())
    return torch.cat((halves(found.step), *parts, pack_alternating(found.scales)), dim=1)


def _decode_iq2_s(blocks: "Tensor") -> "Tensor":
    import torch

    high = (blocks[:, 66:74, None].int() >> torch.tensor([0, 2, 4, 6], dtype=torch.int32)) & 3
    points = blocks[:, 2:34].int() | (high.reshape(-1, 32) << 8)
    return _values(_IQ2_S, blocks[:, :2], unpack_alternating(blocks[:, 74:]), points, unpack_bits(blocks[:, 34:66]))


def _encode_iq2_xs(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return words of 16 bits: nine for the point, seven for signs."""
    import torch

    found = _search(_IQ2_XS, x, importance)
    word = found.points | ((pack_bits(found.minus.byte()).int() & 127) << 9)
    packed = word.to(torch.uint16).view(torch.uint8)
    return torch.cat((halves(found.step), packed, pack_alternating(found.scales)), dim=1)


def _decode_iq2_xs(blocks: "Tensor") -> "Tensor":
    import torch

    word = blocks[:, 2:66].contiguous().view(torch.int16).int() & 0xFFFF
    return _values(_IQ2_XS, blocks[:, :2], unpack_alternating(blocks[:, 66:]), word & 511, _even_signs(word >> 9))


def _encode_iq2_xxs(x: "Tensor", importance: "Tensor | None") -> "Tensor":
    """Return eight times four bytes of points and a word of signs and scale."""
    import torch

    found = _search(_IQ2_XXS, x, importance)
    words = _words(found.minus, found.scales).view(-1, 8, 4)
    mixed = torch.cat((found.points.byte().view(-1, 8, 4), words), dim=2).reshape(-1, 64)
    return torch.cat((halves(found.step), mixed), dim=1)


def _decode_iq2_xxs(blocks: "Tensor") -> "Tensor":
    mixed = blocks[:, 2:].reshape(-1, 8, 8)
    scales, minus = _from_words(mixed[:, :, 4:].reshape(-1, 32))
    return _values(_IQ2_XXS, blocks[:, :2], scales, mixed[:, :, :4].reshape(-1, 32), minus)


GRID_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "IQ3_S": Kind(SUPER, 110, _encode_iq3_s, _decode_iq3_s),
        "IQ3_XXS": Kind(SUPER, 98, _encode_iq3_xxs, _decode_iq3_xxs),
        "IQ2_S": Kind(SUPER, 82, _encode_iq2_s, _decode_iq2_s),
        "IQ2_XS": Kind(SUPER, 74, _encode_iq2_xs, _decode_iq2_xs),
        "IQ2_XXS": Kind(SUPER, 66, _encode_iq2_xxs, _decode_iq2_xxs),
    }
)
