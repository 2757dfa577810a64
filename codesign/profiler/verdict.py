"""Whether a measured row may be used: valid, suspect or invalid, with every reason; one table of rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from codesign.profiler.load import LoadChange
from codesign.profiler.statistics import CONFIDENCE, Summary
from codesign.profiler.timing import DEFAULT_RULE, StopReason
from codesign.units import format_bytes_per_s, format_flop_per_s, format_percent

IMPOSSIBLE_FACTOR = 1.05
# Others' work counts wherever it runs, as memory and the last cache are shared. The host's share is counted in steps
# of 10 ms, one of which is 0.03 of the shortest row that is judged. Waiting is what others cost on our own processors:
# on a busy machine 2 to 9 % of the time left medians where they were. Switches beside that are short tasks of the
# system, each some 10 us and what lay in the caches; 30 to 500 per second came with such waiting.
OTHER_CPU_COUNT = 0.25
STOLEN_CPU_COUNT = 0.05
WAITING_FRACTION = 0.05
SWITCHES_PER_S = 500.0
# On a shared host the same two threads read 36 or 53 GB/s, for seconds each: a median over both is of neither.
MEMORY_RANGE_FRACTION = 0.25
READING_SHARE = 0.5
THROTTLES = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake")
POWER_CAP = "sw_power_cap"


class Kind(StrEnum):
    """What may be done with a row: fitted and shown, shown with a mark, or only kept."""

    VALID = "valid"
    SUSPECT = "suspect"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a row is not valid: the name of a rule, and the evidence."""

    name: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst kind of all reasons; no reason means valid."""

    kind: Kind
    reasons: tuple[Reason, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(reason.name for reason in self.reasons)
        return f"{self.kind}({names})" if names else str(self.kind)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was observed around the samples; None and empty mean nothing was, or nothing could be.

    `output_error` is the sentence of a failed check against the reference, `failure` that of a kernel or process that
    died, `memory_error` that of an allocation that did not fit. `clock_fraction` is the mean clock over the usual one.
    """

    stop_reason: StopReason | None = None
    clock_gaps: int = 0
    output_error: str | None = None
    failure: str | None = None
    memory_error: str | None = None
    load: LoadChange | None = None
    gpu_events: tuple[str, ...] = ()
    gpu_other_processes: int | None = None
    clock_fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What one call must read and compute at least, and the nominal rates of where its data lie; None: not known.

    For weights that stay in a cache the rate is that cache's, or None; never the memory's. `probed_bytes_per_s` is what
    memory gave beside the samples, a value per round; empty where it was not probed.
    """

    read_bytes: float
    flop: float
    bytes_per_s: float | None = None
    flop_per_s: float | None = None
    probed_bytes_per_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the rules look at."""

    summary: Summary | None
    conditions: Conditions
    ceilings: Ceilings


def judge(summary: Summary | None, conditions: Conditions, ceilings: Ceilings) -> Verdict:
    """Return the verdict of a row; without a summary it is invalid."""
    evidence = Evidence(summary, conditions, ceilings)
    found = {
        kind: tuple(Reason(name, text) for name, rule in rules.items() if (text := rule(evidence)))
        for kind, rules in RULES.items()
    }
    kind = next((kind for kind, reasons in found.items() if reasons), Kind.VALID)
    return Verdict(kind, tuple(reason for reasons in found.values() for reason in reasons))


def _no_samples(seen: Evidence) -> str | None:
    told = seen.conditions.failure or seen.conditions.memory_error or seen.conditions.output_error
    return "no time was taken" if seen.summary is None and not told else None


def _impossible(seen: Evidence) -> str | None:
    if seen.summary is None:
        return None
    limits = (
        (seen.ceilings.read_bytes, seen.ceilings.bytes_per_s, format_bytes_per_s),
        (seen.ceilings.flop, seen.ceilings.flop_per_s, format_flop_per_s),
    )
    for amount, limit, text in limits:
        rate = amount / seen.summary.median_s
        if limit is not None and rate > IMPOSSIBLE_FACTOR * limit:
            return f"{text(rate)} is {rate / limit:.2f}x the nominal {text(limit)}"
    return None


def _throttled(seen: Evidence) -> str | None:
    return _clock_text(seen, [name for name in seen.conditions.gpu_events if name in THROTTLES])


def _power_capped(seen: Evidence) -> str | None:
    return _clock_text(seen, [name for name in seen.conditions.gpu_events if name == POWER_CAP])


def _clock_text(seen: Evidence, names: list[str]) -> str | None:
    if not names:
        return None
    clock = seen.conditions.clock_fraction
    return ", ".join(names) + ("" if clock is None else f", mean clock {format_percent(clock)} of the usual")


def _clock_gap(seen: Evidence) -> str | None:
    count = seen.conditions.clock_gaps
    return f"{count} samples hold a jump of the clock or a suspension" if count else None


def _contention(seen: Evidence) -> str | None:
    load, others = seen.conditions.load, seen.conditions.gpu_other_processes
    found = [f"{others} other processes on the GPU"] if others else []
    if load is not None:
        found += [
            text.format(value)
            for value, limit, text in (
                (load.other_cpu_count, OTHER_CPU_COUNT, "other processes used {:.2f} processors"),
                (load.stolen_cpu_count, STOLEN_CPU_COUNT, "the host took {:.2f} processors away"),
                (load.waiting_fraction, WAITING_FRACTION, "our threads waited for a processor {:.1%} of the time"),
                (load.involuntary_switches_per_s, SWITCHES_PER_S, "{:.0f} involuntary switches per second"),
            )
            if value is not None and value > limit
        ]
    return "; ".join(found) or None


def _unstable(seen: Evidence) -> str | None:
    at_budget = seen.conditions.stop_reason is StopReason.BUDGET
    if seen.summary is None or not at_budget or seen.summary.sample_count < DEFAULT_RULE.min_samples:
        return None
    width = seen.summary.ci_half_width_fraction
    wide = width > DEFAULT_RULE.half_width_fraction or seen.summary.ci_confidence_fraction < CONFIDENCE
    return f"the median is known to {format_percent(width)} only when the budget ended" if wide else None


def _few_samples(seen: Evidence) -> str | None:
    if seen.summary is None or seen.summary.sample_count >= DEFAULT_RULE.min_samples:
        return None
    return f"{seen.summary.sample_count} samples, {DEFAULT_RULE.min_samples} are wanted"


def _memory_moved(seen: Evidence) -> str | None:
    rates = seen.ceilings.probed_bytes_per_s
    if seen.summary is None or not rates:
        return None
    low, high = min(rates), max(rates)
    reads = seen.ceilings.read_bytes / high > READING_SHARE * seen.summary.median_s
    moved = high - low > MEMORY_RANGE_FRACTION * high
    return f"memory gave {format_bytes_per_s(low)} to {format_bytes_per_s(high)} meanwhile" if reads and moved else None


RULES: Mapping[Kind, Mapping[str, Callable[[Evidence], str | None]]] = {
    Kind.INVALID: {
        "failed": lambda seen: seen.conditions.failure,
        "oom": lambda seen: seen.conditions.memory_error,
        "wrong_output": lambda seen: seen.conditions.output_error,
        "no_samples": _no_samples,
        "impossible": _impossible,
        "throttled": _throttled,
        "clock_gap": _clock_gap,
    },
    Kind.SUSPECT: {
        "power_capped": _power_capped,
        "contention": _contention,
        "memory_moved": _memory_moved,
        "unstable": _unstable,
        "few_samples": _few_samples,
    },
}
