"""One scheme everywhere, over many batches, contexts or rows at once: how much faster it is and where a gain ends."""

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.engine import HOST_HIGH_FACTOR, HOST_LOW_FACTOR, host_s, issued_step_s
from codesign.cost.kernels import DATASHEET_GAIN_INTERVAL, KernelPrediction
from codesign.cost.origin import Origin
from codesign.cost.prediction import MATERIAL_FRACTION, TRUST, Prediction
from codesign.cost.step import (
    Step,
    attention_kernels,
    communication_kernels,
    elementwise_kernels,
    group_kernel,
    prefill_step,
)
from codesign.model.groups import FusedGroup
from codesign.schemes.scheme import Scheme

# Candidates for the batch (or rows of a multiplication) at which a gain ends; between two of them is searched again.
BATCH_LIMIT = 16384
BATCHES = np.unique(np.rint(np.geomspace(1, BATCH_LIMIT, 64)))
CONTEXT_POINTS, CONTEXT_MIN_TOKENS = 48, 64
POINTS_BETWEEN = 128
STOPS_PAYING_GAIN = 1.05
PROBABLE_SHARE = 1 / 3

Pair = tuple[KernelPrediction, KernelPrediction, float]  # a kernel before and after, and how often it runs


class Belief(IntEnum):
    """How far an interval supports that a gain is beyond a level."""

    NO = 0
    PROBABLE = 1
    SURE = 2


def belief(gain: Prediction, level: float, sign: int) -> Belief:
    """Return how far the gain is believed to be above (`sign` 1) or below (-1) the level.

    Where the interval reaches the other side, the value must be a good part of the way from there to the level.
    """
    value, end = (gain.value, gain.low) if sign > 0 else (1 / gain.value, 1 / gain.high)
    level = level if sign > 0 else 1 / level
    if value <= level:
        return Belief.NO
    if end >= level:
        return Belief.SURE
    return Belief.PROBABLE if math.log(value / level) >= PROBABLE_SHARE * math.log(value / end) else Belief.NO


@dataclass(frozen=True, slots=True)
class GainCurve:
    """How many times faster than the baseline, with the 80 % interval, over the batches or contexts of a step."""

    value: FloatArray
    low: FloatArray
    high: FloatArray
    origin: Origin

    def at(self, index: int) -> Prediction:
        """Return the gain at one of the points."""
        value, low, high = (float(np.atleast_1d(column)[index]) for column in (self.value, self.low, self.high))
        return Prediction(value, low, high, self.origin)


@dataclass(frozen=True, slots=True)
class Crossing:
    """The smallest batch, context or row count from which on a gain stays beyond a level; `limit` was tried last.

    `earliest` and `latest` are those of the ends of the interval; None: not up to the limit. `belief` is in the gain
    at the limit.
    """

    value: int | None
    earliest: int | None
    latest: int | None
    limit: int
    belief: Belief


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Where a scheme stops paying against 16 bits, in decode.

    `slower_from_batch` and `faster_from_batch` are the batches from which on it is slower or faster at all larger ones,
    `slower_from_rows` the same for its multiplications alone (None: at none up to 16,384). At the workload's batch it
    is 5 % faster from the one context to the other (None: at no context).
    """

    scheme: str
    decode_gain: float
    prefill_gain: float
    slower_from_batch: int | None
    pays_until_context_tokens: int | None
    context_limit_tokens: int
    faster_from_batch: int | None = None
    slower_from_rows: int | None = None
    pays_from_context_tokens: int | None = None


def gain_curve(deployment: Deployment, quantized: Assignment, baseline: Assignment, step: Step) -> GainCurve:
    """Return how much faster the step is with `quantized`, over the step's batches or contexts.

    What both share cancels; of the kernels that change, errors are those of their ratio.
    """
    pairs, shared = _pairs(deployment, quantized, baseline, step)
    before_s, (after_s, slow_s, fast_s) = _before(pairs), _after(pairs)
    ends = [_sum(shared, column) for column in ("predicted_s", "low_s", "high_s")]
    host_before_s, host_after_s = (_host_s(deployment, assignment) for assignment in (baseline, quantized))
    hardware = deployment.target.hardware

    def gain(after: FloatArray, kept: FloatArray, host_factor: float) -> FloatArray:
        before = issued_step_s(hardware, before_s + kept, host_before_s * host_factor)
        return as_floats(before / issued_step_s(hardware, after + kept, host_after_s * host_factor))

    value = gain(after_s, ends[0], 1.0)
    factors = (1.0, HOST_LOW_FACTOR, HOST_HIGH_FACTOR) if host_after_s else (1.0,)
    corners = [gain(after, kept, factor) for after in (slow_s, fast_s) for kept in ends for factor in factors]
    stacked = np.stack([value, *corners])
    return GainCurve(value, stacked.min(axis=0), stacked.max(axis=0), _origin(pairs, host_after_s > 0))


def changed_gain_curve(deployment: Deployment, quantized: Assignment, baseline: Assignment, step: Step) -> GainCurve:
    """Return how much faster the kernels are that change between the two, without the rest of the step.

    ValueError where nothing changes.
    """
    pairs, _ = _pairs(deployment, quantized, baseline, step)
    if not pairs:
        raise ValueError("both assignments run the same kernels")
    before_s, (after_s, slow_s, fast_s) = _before(pairs), _after(pairs)
    return GainCurve(before_s / after_s, before_s / slow_s, before_s / fast_s, _origin(pairs, False))


def _pairs(
    deployment: Deployment, quantized: Assignment, baseline: Assignment, step: Step
) -> tuple[list[Pair], list[tuple[KernelPrediction, float]]]:
    """Return the kernels that change, and those that stay."""
    model, target = deployment.model, deployment.target
    pairs: list[Pair] = []
    shared = elementwise_kernels(model, target, step, deployment.engine) + communication_kernels(model, target, step)
    for group, before, after, count in _merged(_Change((id(quantized), id(baseline)), quantized, baseline)):
        kernel = group_kernel(group, before, target, step)
        if before == after:
            shared.append((kernel, count))
        else:
            pairs.append((kernel, group_kernel(group, after, target, step), count))
    attention = attention_kernels(model, baseline.kv, target, step)
    if quantized.kv == baseline.kv:
        return pairs, shared + attention
    changed = attention_kernels(model, quantized.kv, target, step)
    pairs += [(old, new, count) for (old, count), (new, _) in zip(attention, changed, strict=True)]
    return pairs, shared


@dataclass(frozen=True, slots=True)
class _Change:
    """Two assignments, told apart by their identities, which stay unique as long as they are held here."""

    key: tuple[int, int]
    quantized: Assignment = field(compare=False)
    baseline: Assignment = field(compare=False)


@functools.lru_cache(maxsize=64)
def _merged(change: _Change) -> tuple[tuple[FusedGroup, Scheme, Scheme, float], ...]:
    """Return a group of each shape that changes alike, its schemes before and after, and how many there are."""
    first: dict[tuple[object, ...], tuple[FusedGroup, Scheme, Scheme]] = {}
    counts: Counter[tuple[object, ...]] = Counter()
    schemes = zip(change.baseline.schemes, change.quantized.schemes, strict=True)
    for group, (before, after) in zip(change.baseline.groups, schemes, strict=True):
        key = (*group.signature, before.name, after.name)
        first.setdefault(key, (group, before, after))
        counts[key] += 1
    return tuple((*one, float(counts[key])) for key, one in first.items())


def _sum(kernels: list[tuple[KernelPrediction, float]], column: str) -> FloatArray:
    return as_floats(sum((getattr(kernel, column) * count for kernel, count in kernels), as_floats(0.0)))


def _before(pairs: list[Pair]) -> FloatArray:
    return _sum([(before, count) for before, _, count in pairs], "predicted_s")


def _after(pairs: list[Pair]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the seconds of the changed kernels, and those at the lower and the upper end of their gain."""
    value = slow = fast = as_floats(0.0)
    for before, after, count in pairs:
        low, high = ratio_ends(before, after)
        seconds = after.predicted_s * count
        value, slow, fast = value + seconds, slow + seconds / low, fast + seconds / high
    return value, slow, fast


def ratio_ends(before: KernelPrediction, after: KernelPrediction) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the 80 % interval of a ratio of two kernels' times, as factors on the ratio.

    Errors of fitted kernels are taken as independent: such intervals hold 83 % of the measured speed-ups of
    multiplications and 96 % of those of attention. Errors of the datasheet roofline largely cancel.
    """
    if before.origin is after.origin is Origin.DATASHEET:
        low, high = DATASHEET_GAIN_INTERVAL
        return as_floats(low), as_floats(high)
    below = np.hypot(np.log(before.predicted_s / before.low_s), np.log(after.high_s / after.predicted_s))
    above = np.hypot(np.log(before.high_s / before.predicted_s), np.log(after.predicted_s / after.low_s))
    return np.exp(-below), np.exp(above)


def _host_s(deployment: Deployment, assignment: Assignment) -> float:
    return host_s(deployment.engine, deployment.target.hardware, assignment.groups, assignment.schemes).value


def _origin(pairs: list[Pair], host_waits: bool) -> Origin:
    """Return the least trusted origin among kernels that make a tenth of what changes, or more."""
    seconds = [float(np.mean(after.predicted_s)) * count for _, after, count in pairs]
    counted = [
        max(before.origin, after.origin, key=TRUST.index)
        for (before, after, _), each in zip(pairs, seconds, strict=True)
        if each >= MATERIAL_FRACTION * sum(seconds)
    ]
    return max([*counted, *([Origin.TRANSFERRED] if host_waits else [])], key=TRUST.index, default=Origin.DATASHEET)


def crossing(curve: Callable[[FloatArray], GainCurve], points: FloatArray, level: float, sign: int) -> Crossing:
    """Return from which point on the gain stays below (`sign` -1) or above (+1) `level`, at all further points.

    The candidates are whole numbers; those between the last on the wrong side and the next are tried too. Nothing is
    believed of a crossing that may be anywhere.
    """
    coarse = curve(points)
    first_end, last_end = ("low", "high") if sign < 0 else ("high", "low")
    value, earliest, latest = (
        _last_change(curve, coarse, points, lambda gains: (gains - level) * sign > 0, column)
        for column in ("value", first_end, last_end)
    )
    anywhere = earliest == points[0] and latest is None
    how = Belief.NO if anywhere else belief(coarse.at(-1), level, sign)
    return Crossing(value, earliest, latest, int(points[-1]), how)


def crossing_point(curve: Callable[[FloatArray], GainCurve], points: FloatArray, level: float, sign: int) -> int | None:
    """Return from which point on the gain stays below (`sign` -1) or above (+1) `level`, as `crossing` does, alone."""
    return _last_change(curve, curve(points), points, lambda gains: (gains - level) * sign > 0, "value")


def _remembered(curve: Callable[[FloatArray], GainCurve]) -> Callable[[FloatArray], GainCurve]:
    """Return the curve, with what it gave for the same points before."""
    known: dict[bytes, GainCurve] = {}

    def at(points: FloatArray) -> GainCurve:
        key = points.tobytes()
        if key not in known:
            known[key] = curve(points)
        return known[key]

    return at


def _last_change(
    curve: Callable[[FloatArray], GainCurve],
    coarse: GainCurve,
    points: FloatArray,
    beyond: Callable[[FloatArray], npt.NDArray[np.bool_]],
    column: str,
) -> int | None:
    """Return the first whole number from which on a column of the curve is beyond; None if it is not at the last."""
    short = np.flatnonzero(~beyond(np.broadcast_to(getattr(coarse, column), points.shape)))
    if not short.size:
        return int(points[0])
    if short[-1] == len(points) - 1:
        return None
    between = np.unique(np.rint(np.linspace(points[short[-1]], points[short[-1] + 1], POINTS_BETWEEN)))
    return int(between[np.flatnonzero(~beyond(getattr(curve(between), column)))[-1] + 1])


def batch_curve(
    deployment: Deployment, quantized: Assignment, baseline: Assignment
) -> Callable[[FloatArray], GainCurve]:
    """Return the gain of decode as a function of the batch."""
    context = deployment.workload.mean_context_tokens
    return lambda batches: gain_curve(deployment, quantized, baseline, Step(batches, 1, context))


def context_curve(
    deployment: Deployment, quantized: Assignment, baseline: Assignment
) -> Callable[[FloatArray], GainCurve]:
    """Return the gain of decode as a function of the context."""
    batch = float(deployment.workload.batch)
    return lambda contexts: gain_curve(deployment, quantized, baseline, Step(batch, 1, contexts))


def context_points(deployment: Deployment) -> FloatArray:
    """Return the contexts to try, up to what the model was made for."""
    limit = deployment.model.max_context_tokens
    return np.unique(np.rint(np.geomspace(min(CONTEXT_MIN_TOKENS, limit), limit, CONTEXT_POINTS)))


def kv_context_curve(
    deployment: Deployment, quantized: Assignment, baseline: Assignment
) -> Callable[[FloatArray], GainCurve]:
    """Return the gain of the changed kernels of decode, such as attention, as a function of the context."""
    batch = float(deployment.workload.batch)
    return lambda contexts: changed_gain_curve(deployment, quantized, baseline, Step(batch, 1, contexts))


def host_curve(deployment: Deployment, assignment: Assignment) -> Callable[[FloatArray], GainCurve]:
    """Return the host's time of a decode step over the device's, as a function of the batch."""
    host_s = _host_s(deployment, assignment)
    context = deployment.workload.mean_context_tokens

    def ratio(batches: FloatArray) -> GainCurve:
        _, kernels = _pairs(deployment, assignment, assignment, Step(batches, 1, context))
        device_s, low_s, high_s = (_sum(kernels, column) for column in ("predicted_s", "low_s", "high_s"))
        return GainCurve(
            host_s / device_s, host_s * HOST_LOW_FACTOR / high_s, host_s * HOST_HIGH_FACTOR / low_s, Origin.TRANSFERRED
        )

    return ratio


def rows_curve(
    deployment: Deployment, quantized: Assignment, baseline: Assignment
) -> Callable[[FloatArray], GainCurve]:
    """Return the gain of the changed kernels as a function of the tokens in a step, the rows M of multiplications."""
    return lambda rows: changed_gain_curve(deployment, quantized, baseline, Step(rows, 1, as_floats(1.0)))


def prefill_gain(deployment: Deployment, quantized: Assignment, baseline: Assignment) -> Prediction:
    """Return how much faster the first token is."""
    return gain_curve(deployment, quantized, baseline, prefill_step(deployment.workload)).at(0)


def break_even(deployment: Deployment, quantized: Assignment, baseline: Assignment, name: str) -> BreakEven:
    """Return where `quantized` stops being faster than `baseline`."""
    by_batch, by_context = (
        _remembered(curve(deployment, quantized, baseline)) for curve in (batch_curve, context_curve)
    )
    first, last = paying_contexts(by_context, context_points(deployment))
    same_weights = quantized.schemes == baseline.schemes
    rows = None if same_weights else crossing_point(rows_curve(deployment, quantized, baseline), BATCHES, 1.0, -1)
    return BreakEven(
        scheme=name,
        decode_gain=by_batch(as_floats([deployment.workload.batch])).at(0).value,
        prefill_gain=prefill_gain(deployment, quantized, baseline).value,
        slower_from_batch=crossing_point(by_batch, BATCHES, 1.0, -1),
        pays_until_context_tokens=last,
        context_limit_tokens=deployment.model.max_context_tokens,
        faster_from_batch=crossing_point(by_batch, BATCHES, 1.0, 1),
        slower_from_rows=rows,
        pays_from_context_tokens=first,
    )


def paying_contexts(curve: Callable[[FloatArray], GainCurve], points: FloatArray) -> tuple[int | None, int | None]:
    """Return the shortest and the longest context at which the gain is 5 %; None and None if it is at none."""
    paying = np.flatnonzero(curve(points).value >= STOPS_PAYING_GAIN)
    if not paying.size:
        return None, None
    starts, stops = (crossing_point(curve, points, STOPS_PAYING_GAIN, sign) for sign in (1, -1))
    first = points[paying[0]] if starts is None or paying[0] == 0 else starts
    return int(first), int(points[-1]) if stops is None else stops - 1
