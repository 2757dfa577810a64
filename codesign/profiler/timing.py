"""How a prepared kernel is timed: warm-up, calls gathered into samples, rounds of samples, and when to stop.

Candidates are interleaved by whoever calls `take_round` on them in turn; nothing here prints, reads files or sleeps.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

from codesign.errors import MeasurementError
from codesign.profiler.statistics import CONFIDENCE, Summary, summarize

GAP_S = 1.0
ROUND_MAX_S = 0.5  # longer rounds would let the machine drift between candidates
BLOCK_SAMPLES = 20
SETTLED_BLOCKS = 3
MAX_CALLS_PER_SAMPLE = 2**20


class Clock(Protocol):
    """Anything that says the time in seconds and never goes back."""

    def now_s(self) -> float:
        """Return the seconds since a fixed moment."""


class MonotonicClock:
    """The clock of this machine; steps of the wall clock do not move it."""

    now_s = staticmethod(time.perf_counter)


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed: `run(copy)` with copies 0..copies-1 in turn.

    `before_sample` runs untimed before each sample, as a flush of the caches does; a sample is then a single call.
    """

    run: Callable[[int], Any]
    copies: int = 1
    before_sample: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How long to warm up, how to sample and when to stop."""

    min_sample_s: float = 1e-3
    warm_up_min_s: float = 0.1
    warm_up_max_s: float = 2.0
    settled_fraction: float = 0.01
    min_rounds: int = 5
    min_samples: int = 30
    half_width_fraction: float = 0.01
    budget_s: float = 15.0


DEFAULT_RULE = Rule()


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the warm-up cost and found: seconds of one call, and the calls that make a sample long enough."""

    spent_s: float
    call_count: int
    settled: bool
    call_s: float
    calls_per_sample: int


@dataclass(frozen=True, slots=True)
class Round:
    """Samples taken in a row, each the mean seconds of one call; `gaps` are indices of those that hold a jump."""

    samples_s: tuple[float, ...]
    gaps: tuple[int, ...]
    spent_s: float


class StopReason(StrEnum):
    """Why sampling ended."""

    CI = "ci"
    BUDGET = "budget"


class Timer:
    """Runs samples of one piece of work and remembers which copy comes next.

    `note` says what is unusual in how it does so.
    """

    note = ""

    def __init__(self, work: Work, clock: Clock) -> None:
        self.work, self.clock, self._next_copy = work, clock, 0

    def sample(self, calls: int) -> float:
        """Return the seconds of `calls` calls in a row."""
        copies = self.work.copies
        first, self._next_copy = self._next_copy, (self._next_copy + calls) % copies
        order = [(first + i) % copies for i in range(calls)] if calls > 1 else [first]
        if self.work.before_sample is not None:
            self.work.before_sample()
        return _time_calls(self.work.run, order, self.clock.now_s)


def _time_calls(run: Callable[[int], Any], order: Sequence[int], now_s: Callable[[], float]) -> float:
    start_s = now_s()
    for copy in order:
        run(copy)
    return now_s() - start_s


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Hold Python's garbage collector back: its pauses are no time of the kernel."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def warm_up(timer: Timer, rule: Rule = DEFAULT_RULE) -> WarmUp:
    """Return the warm-up: blocks of 20 samples until three medians in a row agree, between 100 ms and 2 s.

    Work whose calls are longer than that is called at least once.
    """
    start_s, calls, call_count = timer.clock.now_s(), 1, 0
    call_s: list[float] = []
    medians: list[float] = []
    spent_s = 0.0
    while spent_s < rule.warm_up_max_s and not (spent_s >= rule.warm_up_min_s and _is_settled(medians, rule)):
        sample_s = timer.sample(calls)
        spent_s, call_count = timer.clock.now_s() - start_s, call_count + calls
        if sample_s <= 0 and calls == MAX_CALLS_PER_SAMPLE:
            raise MeasurementError(f"The clock stood still during {calls:,} calls; it cannot time anything.")
        wanted = _calls_per_sample(timer.work, sample_s / calls, rule)
        if wanted > 2 * calls:  # the first calls were slow, or still too few to be timed: begin the block again
            calls, call_s = min(wanted, 8 * calls), []
            continue
        call_s.append(sample_s / calls)
        if len(call_s) % BLOCK_SAMPLES == 0:
            medians.append(statistics.median(call_s[-BLOCK_SAMPLES:]))
    found_s = statistics.median(call_s[-BLOCK_SAMPLES:]) if call_s else sample_s / calls
    return WarmUp(
        spent_s, call_count, _is_settled(medians, rule), found_s, _calls_per_sample(timer.work, found_s, rule)
    )


def _is_settled(medians: Sequence[float], rule: Rule) -> bool:
    last = medians[-SETTLED_BLOCKS:]
    return len(last) == SETTLED_BLOCKS and max(last) - min(last) < rule.settled_fraction * min(last)


def _calls_per_sample(work: Work, call_s: float, rule: Rule) -> int:
    if work.before_sample is not None or call_s >= rule.min_sample_s:
        return 1
    return min(MAX_CALLS_PER_SAMPLE, math.ceil(rule.min_sample_s / max(call_s, 1e-12)))


def take_round(timer: Timer, found: WarmUp, sample_count: int) -> Round:
    """Return one round of samples; a jump of the clock or a suspension marks the sample that holds it."""
    start_s, calls = timer.clock.now_s(), found.calls_per_sample
    with _garbage_kept():
        durations_s = [timer.sample(calls) for _ in range(sample_count)]
    expected_s = calls * found.call_s
    longest_s = expected_s + max(GAP_S, expected_s)
    gaps = tuple(i for i, one_s in enumerate(durations_s) if one_s > longest_s or one_s <= 0)
    return Round(tuple(one_s / calls for one_s in durations_s), gaps, timer.clock.now_s() - start_s)


@dataclass(frozen=True, slots=True)
class Sampling:
    """The rounds of one candidate so far; adding one gives a new value."""

    found: WarmUp
    rule: Rule = DEFAULT_RULE
    rounds: tuple[Round, ...] = ()

    def add(self, one: Round) -> "Sampling":
        """Return the sampling with one more round."""
        return replace(self, rounds=(*self.rounds, one))

    @property
    def samples_s(self) -> tuple[float, ...]:
        """Return all samples in the order in which they were taken."""
        return tuple(value for one in self.rounds for value in one.samples_s)

    @property
    def gap_count(self) -> int:
        """Return how many samples hold a jump of the clock or a suspension."""
        return sum(len(one.gaps) for one in self.rounds)

    @property
    def spent_s(self) -> float:
        """Return the seconds that the rounds took."""
        return sum(one.spent_s for one in self.rounds)

    def summary(self) -> Summary:
        """Return the statistics of all samples so far."""
        return summarize(self.samples_s)

    def stop_reason(self) -> StopReason | None:
        """Return why no further round is needed, None if one is."""
        if not self.rounds:
            return None
        if len(self.rounds) >= self.rule.min_rounds and len(self.samples_s) >= self.rule.min_samples:
            summary = self.summary()
            tight = summary.ci_half_width_fraction <= self.rule.half_width_fraction
            if tight and summary.ci_confidence_fraction >= CONFIDENCE:
                return StopReason.CI
        return StopReason.BUDGET if self.spent_s + self._sample_s() > self.rule.budget_s else None

    def next_sample_count(self) -> int:
        """Return the samples of the next round: an even share of what is needed, as far as the budget goes."""
        rule, taken = self.rule, len(self.samples_s)
        share = math.ceil(rule.min_samples / rule.min_rounds)
        wanted = share if taken < rule.min_samples else max(share, min(taken, self._missing()))
        rounds_left = max(1, rule.min_rounds - len(self.rounds))
        affordable_s = (rule.budget_s - self.spent_s) / rounds_left
        longest_s = affordable_s if taken < rule.min_samples else min(ROUND_MAX_S, affordable_s)
        return max(1, min(wanted, int(longest_s / self._sample_s())))

    def _missing(self) -> int:
        """Return how many more samples narrow the interval enough, its width falling with the root of their count."""
        ratio = self.summary().ci_half_width_fraction / self.rule.half_width_fraction
        return math.ceil(len(self.samples_s) * (min(ratio, 1e3) ** 2 - 1))

    def _sample_s(self) -> float:
        """Return the seconds that one sample takes with all that surrounds it, a round's mean where there is one."""
        if self.rounds:
            return max(self.spent_s / len(self.samples_s), 1e-9)
        return max(self.found.call_s * self.found.calls_per_sample, 1e-9)
