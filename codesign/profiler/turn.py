"""One candidate while it is measured: what is known so far, and the record that comes of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from codesign.profiler.candidates import Entry, processors_of
from codesign.profiler.check import Check
from codesign.profiler.energy import Energy
from codesign.profiler.gpu_states import GpuRound, with_gpu
from codesign.profiler.load import LoadChange
from codesign.profiler.reading import Reading
from codesign.profiler.records import KERNEL_NOTE, Measurement, Procedure
from codesign.profiler.statistics import ProcessSpread, process_spread
from codesign.profiler.timing import Rule, Sampling, StopReason
from codesign.profiler.verdict import Ceilings, Conditions, judge

PREPARE_LIMIT_S = 600.0
LOAD_MIN_S = 0.3  # the counters tick every 10 ms


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine does at most, by its profile."""

    bytes_per_s: float
    flop_per_s: Mapping[str, float]
    cache_bytes: float

    def ceilings(self, turn: "Turn") -> Ceilings:
        """Return the ceilings of one case; weights that stay in the cache have no known one."""
        entry, read_bytes, math_dtype = turn.entry, turn.read_bytes, turn.math_dtype
        rotates = entry.case.cache == "rotating" and entry.copies * read_bytes > self.cache_bytes
        streams = entry.case.cache == "cold" or rotates
        return Ceilings(
            read_bytes,
            entry.case.flop,
            self.bytes_per_s if streams else None,
            self.flop_per_s.get(math_dtype),
            turn.memory_bytes_per_s if streams else (),
        )


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a plan is measured: `repeat` fresh processes per case; `idle_watt` of devices whose energy is measured.

    `usual_clock_hz` is of the GPU, where there is one that says it.
    """

    hw: str
    modules: tuple[str, ...]
    seed: int
    rule: Rule
    memory_limit_bytes: float
    limits: Limits
    prepare_limit_s: float = PREPARE_LIMIT_S
    repeat: int = 1
    idle_watt: Mapping[str, Reading[float]] | None = None
    usual_clock_hz: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a child said about the case that it prepared; `timing` is what is unusual in how it will be timed."""

    check: Check
    copies: int
    read_bytes: float
    math_dtype: str
    timing: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One candidate of the group that is being measured, as far as it has come.

    `earlier` are the samplings of the processes before this one that ran the same case; `unwatched` says why a GPU's
    rounds are not known; `memory_bytes_per_s` is what memory gave after each round.
    """

    entry: Entry
    started_utc: str
    prepared: Prepared | None = None
    sampling: Sampling | None = None
    loads: tuple[LoadChange, ...] = ()
    gpu_rounds: tuple[GpuRound, ...] = ()
    memory_bytes_per_s: tuple[float, ...] = ()
    earlier: tuple[Sampling, ...] = ()
    energy: Reading[Energy] | None = None
    unwatched: str | None = None

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """Return the samplings of all processes so far that hold samples."""
        given = (*self.earlier, self.sampling) if self.sampling is not None else self.earlier
        return tuple(one for one in given if one.rounds)

    @property
    def read_bytes(self) -> float:
        """Return what one call reads at least, 0 if it is not known."""
        return self.prepared.read_bytes if self.prepared else 0.0

    @property
    def math_dtype(self) -> str:
        """Return the type in which it multiplies, empty if it is not known."""
        return self.prepared.math_dtype if self.prepared else ""

    @property
    def is_sampled(self) -> bool:
        """Return whether this process has taken the samples that it should."""
        return self.sampling is not None and self.sampling.stop_reason() is not None

    def in_next_process(self) -> "Turn":
        """Return the turn as a fresh process takes it up."""
        assert self.sampling is not None
        return replace(self, prepared=None, sampling=None, earlier=(*self.earlier, self.sampling))


def row(turn: Turn, settings: RunSettings, ended: Conditions) -> Measurement:
    """Return the measurement of a turn that has ended; `ended` says how, if not well."""
    entry, prepared = turn.entry, turn.prepared
    sampling = _all_samples(turn.samplings)
    summary = sampling.summary() if sampling else None
    conditions = replace(
        ended,
        stop_reason=_stop_reason(turn.samplings),
        clock_gaps=sampling.gap_count if sampling else 0,
        # What else the processors do does not slow kernels of a GPU, which its own clock times.
        load=mean_load(turn.loads) if entry.kernel.device == "cpu" else None,
    )
    conditions = with_gpu(conditions, turn.gpu_rounds, settings.usual_clock_hz)
    return Measurement(
        key=entry.key,
        hw=settings.hw,
        library=entry.kernel.library,
        library_version=entry.version,
        kernel=entry.kernel.name,
        case=entry.case,
        samples_s=sampling.samples_s if sampling else (),
        summary=summary,
        read_bytes=turn.read_bytes or None,
        flop=entry.case.flop,
        math_dtype=turn.math_dtype,
        check=prepared.check if prepared else None,
        procedure=_procedure(turn, sampling),
        conditions=conditions,
        verdict=judge(summary, conditions, settings.limits.ceilings(turn)),
        spread=_spread(turn.samplings),
        energy=turn.energy.value if turn.energy else None,
        gpu_rounds=turn.gpu_rounds,
        memory_bytes_per_s=turn.memory_bytes_per_s,
    )


def _all_samples(samplings: tuple[Sampling, ...]) -> Sampling | None:
    """Return the rounds of all processes as one sampling, None where there are none."""
    if not samplings:
        return None
    return replace(samplings[-1], rounds=tuple(chain.from_iterable(one.rounds for one in samplings)))


def _stop_reason(samplings: tuple[Sampling, ...]) -> StopReason | None:
    """Return why sampling ended: at the budget, if that ended it in any process."""
    reasons = [one.stop_reason() for one in samplings]
    return StopReason.BUDGET if StopReason.BUDGET in reasons else reasons[-1] if reasons else None


def _spread(samplings: tuple[Sampling, ...]) -> ProcessSpread | None:
    return process_spread([one.summary() for one in samplings]) if len(samplings) > 1 else None


def _procedure(turn: Turn, sampling: Sampling | None) -> Procedure:
    found = {
        KERNEL_NOTE: turn.entry.kernel.note,
        "timing": turn.prepared.timing if turn.prepared else None,
        "energy": turn.energy.why if turn.energy is not None else None,
        "telemetry": f"absent, because {turn.unwatched}" if turn.unwatched else None,
    }
    notes = {**turn.entry.notes, **{name: text for name, text in found.items() if text}}
    return Procedure(
        started_utc=turn.started_utc,
        affinity=processors_of(turn.entry),
        copies=turn.prepared.copies if turn.prepared else turn.entry.copies,
        warm_up=turn.sampling.found if turn.sampling else None,
        round_sizes=tuple(len(one.samples_s) for one in sampling.rounds) if sampling else (),
        notes=notes,
    )


def mean_load(loads: tuple[LoadChange, ...]) -> LoadChange | None:
    """Return what happened over all rounds; None where they are too short for the counters to say."""
    duration_s = sum(one.duration_s for one in loads)
    if duration_s < LOAD_MIN_S:
        return None

    def mean(values: Iterable[float | None]) -> float | None:
        pairs = list(zip(values, loads, strict=True))
        known = [value * one.duration_s for value, one in pairs if value is not None]
        return sum(known) / duration_s if len(known) == len(pairs) else None

    return LoadChange(
        duration_s=duration_s,
        involuntary_switches_per_s=mean(one.involuntary_switches_per_s for one in loads) or 0.0,
        other_cpu_count=mean(one.other_cpu_count for one in loads),
        stolen_cpu_count=mean(one.stolen_cpu_count for one in loads),
        waiting_fraction=mean(one.waiting_fraction for one in loads),
        load_average=loads[-1].load_average,
    )
