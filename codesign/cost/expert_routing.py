"""Where the tokens of a block of experts go: what the busiest device has to do, for balanced and skewed routing.

Every token goes to `top_k` different experts, which are divided over devices. `tokens` counts those of all devices
together, and the device described is the one with the most rows: it finishes last.

Skew 0: perfectly even, so that few tokens hit as many experts as they can. Below 0: every token chooses at random, and
chances are equal, as in serving. Skew a > 0: the loads of experts are drawn
from a power law of density x^-a over [1, 0.8 tokens] (or [0.01, 2] while choices are no more than experts), normalised,
at most one row per token. Source: so does aiconfigurator's benchmark (Apache-2.0, August 2026) for its "power_law_a".
"""

import functools
from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.traffic import expected_experts_hit

RANDOM_ROUTING = -1.0
TILE_ROWS = (16, 64, 128)
DRAW_COUNT = 16
SEED = 20261121
MANY_TOKENS_RANGE = (1.0, 0.8)
FEW_TOKENS_RANGE = (0.01, 2.0)


@dataclass(frozen=True, slots=True)
class Routing:
    """What the busiest device gets: experts hit, rows, and [tile height, ...] how many tiles hold these rows."""

    hit: FloatArray
    rows: FloatArray
    tiles: FloatArray


def busiest_device(
    tokens: FloatArray, experts: FloatArray, top_k: FloatArray, skew: FloatArray, expert_parallel: FloatArray
) -> Routing:
    """Return the work of the device with the most rows; the arrays broadcast against each other."""
    columns = np.broadcast_arrays(*(as_floats(c) for c in (tokens, experts, top_k, skew, expert_parallel)))
    shape = columns[0].shape
    flat = [column.ravel() for column in columns]
    routing = _even(*flat)
    skewed = np.flatnonzero(flat[3] > 0)
    if skewed.size:
        keys, inverse = np.unique(np.stack([column[skewed] for column in flat]), axis=1, return_inverse=True)
        found = np.array([_skewed(*key) for key in keys.T.tolist()])[inverse.ravel()]
        routing.hit[skewed], routing.rows[skewed], routing.tiles[:, skewed] = found[:, 0], found[:, 1], found[:, 2:].T
    return Routing(
        routing.hit.reshape(shape), routing.rows.reshape(shape), routing.tiles.reshape(len(TILE_ROWS), *shape)
    )


def _even(
    tokens: FloatArray, experts: FloatArray, top_k: FloatArray, skew: FloatArray, expert_parallel: FloatArray
) -> Routing:
    rows = np.maximum(tokens * top_k / expert_parallel, 1.0)
    at_random = expected_experts_hit(tokens, experts, top_k) / expert_parallel
    as_many = np.minimum(rows, np.ceil(experts / expert_parallel))
    hit = np.where(skew < 0, np.clip(at_random, 1.0, as_many), as_many)
    tiles = np.stack([hit * np.ceil(rows / hit / height) for height in TILE_ROWS])
    return Routing(hit, rows, tiles)


@functools.lru_cache(maxsize=65536)
def _skewed(tokens: float, experts: float, top_k: float, skew: float, expert_parallel: float) -> tuple[float, ...]:
    """Return experts hit, rows and tiles of the busiest device, the mean over draws."""
    expert_count, per_device = int(experts), int(-(-experts // expert_parallel))
    uniform = np.random.default_rng(SEED).random((DRAW_COUNT, expert_count))
    counts = _counts(_power_law(uniform, tokens * top_k > experts, tokens, skew), tokens, top_k, per_device)
    counts = np.pad(counts, ((0, 0), (0, -expert_count % per_device)))
    by_device = counts.reshape(DRAW_COUNT, -1, per_device)
    busiest = by_device.sum(axis=2).argmax(axis=1)
    local = by_device[np.arange(DRAW_COUNT), busiest]
    tiles = (np.ceil(local / height).sum(axis=1).mean() for height in TILE_ROWS)
    return (float((local > 0).sum(axis=1).mean()), float(local.sum(axis=1).mean()), *(float(count) for count in tiles))


def _power_law(uniform: FloatArray, many: bool, tokens: float, skew: float) -> FloatArray:
    low, high = (MANY_TOKENS_RANGE[0], max(MANY_TOKENS_RANGE[1] * tokens, 1.0)) if many else FEW_TOKENS_RANGE
    if abs(skew - 1.0) < 1e-6:
        return as_floats(low * (high / low) ** uniform)
    power = 1.0 - skew
    return as_floats((low**power + uniform * (high**power - low**power)) ** (1.0 / power))


def _counts(weights: FloatArray, tokens: float, top_k: float, per_device: int) -> FloatArray:
    """Return whole rows per expert [draw, expert], each at most `tokens`, whose sum is tokens x top_k."""
    wanted = tokens * top_k
    share = weights / weights.sum(axis=1, keepdims=True) * wanted
    for _ in range(8):  # hand what was clipped to the experts below
        share = np.minimum(share, tokens)
        free = np.where(share < tokens, share, 0.0)
        missing = wanted - share.sum(axis=1, keepdims=True)
        share = share + missing * free / np.maximum(free.sum(axis=1, keepdims=True), 1e-9)
    counts = np.minimum(np.round(share), tokens)
    # What rounding left over goes to the experts with least, in turn over the devices; too much leaves those with most.
    place = np.arange(counts.shape[1]) % per_device
    rank = np.argsort(np.argsort(counts + place / counts.shape[1], axis=1), axis=1)
    left_over = wanted - counts.sum(axis=1, keepdims=True)
    counts = counts + (rank < left_over) - (counts.shape[1] - 1 - rank < -left_over)
    return as_floats(np.clip(counts, 0.0, tokens))
