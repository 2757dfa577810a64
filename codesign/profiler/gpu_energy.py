"""Joules of calls on a GPU: its own process keeps it busy while telemetry samples the energy counter beside it.

The counter moves in steps of 20 to 100 ms and is seen every 50 ms, so that a step is known to 50 ms: over the 5 s
between the first and the last step of a window that is 1 % at either end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from codesign.profiler.energy import (
    COUNTER,
    COUNTER_WAIT_S,
    INTEGRATED_POWER,
    MIN_WINDOW_S,
    NO_COLD_ENERGY,
    Energy,
)
from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry_lines import GpuState
from codesign.profiler.timing import Timer, WarmUp

WINDOW_S = MIN_WINDOW_S + COUNTER_WAIT_S
Timed = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Busy:
    """When a kernel was called over and over, and how often."""

    begin_s: float
    end_s: float
    call_count: int


@dataclass(frozen=True, slots=True)
class MeanPower:
    """The mean power over a window, and how it was read."""

    watt: float
    method: str


def keep_busy(timer: Timer, found: WarmUp, window_s: float = WINDOW_S) -> Reading[Busy]:
    """Call a prepared kernel for the length of a window, as its samples do."""
    if timer.work.before_sample is not None:
        return absent(NO_COLD_ENERGY)
    begin_s, calls = timer.clock.now_s(), 0
    while timer.clock.now_s() - begin_s < window_s:
        timer.sample(found.calls_per_sample)
        calls += found.calls_per_sample
    return Reading(Busy(begin_s, timer.clock.now_s(), calls))


def energy_of_busy(
    busy: Busy, states: Sequence[tuple[float, GpuState]], source: str, idle: Reading[float]
) -> Reading[Energy]:
    """Return the energy of the calls of a window: its mean power, as `states` tell it, times its length."""
    power = mean_power(states)
    if power.value is None:
        return absent(power.why or "")
    window_s = busy.end_s - busy.begin_s
    joule = power.value.watt * window_s
    return Reading(Energy(power.value.method, source, joule, window_s, busy.call_count, idle.value, idle.why))


def mean_power(states: Sequence[tuple[float, GpuState]]) -> Reading[MeanPower]:
    """Return the mean power of a window by its counter, or by power readings where there is no counter."""
    if not states:
        return absent("telemetry saw nothing of the window")
    counted = [(at_s, one.energy_joule.value) for at_s, one in states if one.energy_joule.value is not None]
    if counted:
        return _counted(counted)
    powers = [(at_s, one.power_watt.value) for at_s, one in states if one.power_watt.value is not None]
    if powers:
        return _integrated(powers)
    return absent(states[-1][1].energy_joule.why or "the GPU gives no energy")


def _counted(points: Sequence[Timed]) -> Reading[MeanPower]:
    """Return the counter's difference between the first and the last step that was seen, over the time between."""
    if any(after < before for (_, before), (_, after) in pairwise(points)):
        return absent("the energy counter went backwards during the window (was the driver reloaded?); measure again")
    steps = [after for before, after in pairwise(points) if after[1] != before[1]]
    if not steps:
        return absent("the energy counter did not move in the whole window; this device does not count")
    (first_s, first_joule), (last_s, last_joule) = steps[0], steps[-1]
    short = _too_short(last_s - first_s)
    return short or Reading(MeanPower((last_joule - first_joule) / (last_s - first_s), COUNTER))


def _integrated(points: Sequence[Timed]) -> Reading[MeanPower]:
    """Return the mean of the trapezoids under power readings."""
    duration_s = points[-1][0] - points[0][0]
    joule = sum(0.5 * (before + after) * (then_s - now_s) for (now_s, before), (then_s, after) in pairwise(points))
    return _too_short(duration_s) or Reading(MeanPower(joule / duration_s, INTEGRATED_POWER))


def _too_short(seen_s: float) -> Reading[MeanPower] | None:
    if seen_s >= MIN_WINDOW_S:
        return None
    return absent(f"telemetry saw {seen_s:.1f} s of the window, {MIN_WINDOW_S:g} s are needed; measure again")
