"""Load for minutes: one case alone, and how its speed, clock, power and temperature change meanwhile."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from codesign.profiler.candidates import RunPlan
from codesign.profiler.records import Measurement
from codesign.profiler.timing import Rule

SAMPLE_S = 0.02  # ten minutes are then 30,000 samples
ROUND_SAMPLES = 24
ROUNDS_MIN = 5
NEVER = -1.0  # no interval is as narrow
PARTS = 10


@dataclass(frozen=True, slots=True)
class SoakPart:
    """A tenth of the load: when it began, the median of a call, and means of what the GPU says; None: it does not."""

    begin_s: float
    median_s: float
    sm_clock_hz: float | None
    power_watt: float | None
    temperature_celsius: float | None


def soak_rule(seconds: float) -> Rule:
    """Return the rule that samples for so long, however well the median is known."""
    return Rule(
        min_sample_s=SAMPLE_S, min_rounds=ROUNDS_MIN, min_samples=ROUNDS_MIN * ROUND_SAMPLES, half_width_fraction=NEVER,
        budget_s=seconds,
    )  # fmt: skip


def one_by_one(plan: RunPlan) -> RunPlan:
    """Return the plan with every case alone: nothing rests while others take their turns."""
    return replace(plan, blocks=tuple((entry,) for entry in plan.entries))


def soak_parts(one: Measurement) -> tuple[SoakPart, ...]:
    """Return the tenths of a measurement by its rounds, fewer where there are fewer rounds; none without samples."""
    sizes = one.procedure.round_sizes
    count = min(PARTS, len(sizes))
    firsts = [0, *accumulate(sizes)]
    calls = one.procedure.warm_up.calls_per_sample if one.procedure.warm_up else 1
    ends = [len(sizes) * part // max(count, 1) for part in range(count + 1)]
    parts = []
    for begin, end in pairwise(ends):
        rounds = one.gpu_rounds[begin:end] if len(one.gpu_rounds) == len(sizes) else ()
        parts.append(
            SoakPart(
                begin_s=calls * sum(one.samples_s[: firsts[begin]]),
                median_s=statistics.median(one.samples_s[firsts[begin] : firsts[end]]),
                sm_clock_hz=_mean(each.mean_sm_clock_hz for each in rounds),
                power_watt=_mean(each.mean_power_watt for each in rounds),
                temperature_celsius=_mean(each.after.temperature_celsius for each in rounds),
            )
        )
    return tuple(parts)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
