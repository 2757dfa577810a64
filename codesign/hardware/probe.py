"""The roofs of this machine by the native probes: bandwidth by working set and threads, peak rates, overheads."""

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from codesign.errors import CapabilityError
from codesign.native import absence, load
from codesign.units import KIBI, MEBI

SAMPLES = 7
SAMPLE_S = 0.02  # long against the clock's resolution and the hand-over to threads
COPY_BYTES = 256 * MEBI
RATES = ("fp32", "bf16", "int8")
WORKING_SETS_BYTES = (16 * KIBI, 256 * KIBI, 4 * MEBI, 64 * MEBI, 512 * MEBI)
CLOCK_STEPS = 20_000_000
OVERHEAD_CALLS = 2000


@dataclass(frozen=True, slots=True)
class Measured:
    """The median of some samples, and (largest - smallest) / median of the middle half."""

    value: float
    spread_fraction: float


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second over a working set that all threads share; a copied byte counts twice, read and written."""

    threads: int
    working_set_bytes: int
    read_bytes_per_s: Measured
    copy_bytes_per_s: Measured


@dataclass(frozen=True, slots=True)
class Roofs:
    """Everything measured. Peaks are by (math dtype, threads).

    `own_fraction` is the share of the time in which this thread had its processor; the rest went to other programs.
    """

    variant: str
    bandwidths: tuple[Bandwidth, ...]
    peak_flop_per_s: dict[tuple[str, int], Measured]
    clock_hz: Measured
    call_s: Measured
    fork_join_s: dict[int, Measured]
    own_fraction: float = 1.0

    def memory_bandwidth(self, threads: int) -> Bandwidth:
        """Return the bandwidth of the largest working set, which lies in main memory."""
        return max((one for one in self.bandwidths if one.threads == threads), key=lambda one: one.working_set_bytes)


def thread_counts(core_count: int) -> tuple[int, ...]:
    """Return 1, 2, 4 ... and all cores."""
    return tuple(sorted({2**i for i in range(core_count.bit_length())} & set(range(1, core_count + 1)) | {core_count}))


def measure_roofs(report: Callable[[str], None] = lambda _: None) -> Roofs:
    """Measure this machine in under 90 seconds; CapabilityError without the native kernels."""
    missing = absence()
    if missing:
        raise CapabilityError(f"The roofs cannot be measured: {missing}.")
    native = load()
    threads = thread_counts(native.processors())
    with _caller_in_place(native, threads[-1]):
        return _measure(native, threads, report)


@contextmanager
def _caller_in_place(native: ModuleType, threads: int) -> Iterator[None]:
    """Keep this thread on the first processor: the pool's workers have the others, and would share one with it."""
    native.roof_read(0, 0, 0, 0, threads)  # the workers start, and pin themselves
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _measure(native: ModuleType, threads: tuple[int, ...], report: Callable[[str], None]) -> Roofs:
    begin_s, begin_own_s = time.perf_counter(), time.thread_time()
    variants = [isa for isa in range(6) if native.isa_runs(isa)]
    report("clock and call overheads")
    clock, call, fork_join = _clock_hz(native), _call_s(native, 1), {n: _call_s(native, n) for n in threads}
    report("peak rates")
    peaks = {(rate, n): found for rate in RATES for n in threads if (found := _peak(native, variants, rate, n))}
    bandwidths = tuple(_bandwidths(native, variants, threads, report))
    own_fraction = (time.thread_time() - begin_own_s) / (time.perf_counter() - begin_s)
    return Roofs(native.isa_text(native.isa_best()), bandwidths, peaks, clock, call, fork_join, min(1.0, own_fraction))


def _measured(values: list[float]) -> Measured:
    low, middle, high = statistics.quantiles(values, n=4)
    return Measured(middle, (high - low) / middle)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _rate(call: Callable[[int], object], work: float) -> Measured:
    """Return work per second, where call(repeats) does `work` that many times."""
    call(1)
    repeats, spent_s = 1, _seconds(lambda: call(1))
    while spent_s < SAMPLE_S / 2:
        repeats = max(2 * repeats, round(repeats * SAMPLE_S / max(spent_s, 1e-9)))
        spent_s = _seconds(functools.partial(call, repeats))
    return _measured([work * repeats / _seconds(functools.partial(call, repeats)) for _ in range(SAMPLES)])


def _best(found: Iterable[Measured]) -> Measured:
    return max(found, key=lambda one: one.value)


def _clock_hz(native: ModuleType) -> Measured:
    """Return additions that depend on each other per second: one each clock cycle."""
    return _rate(lambda repeats: native.roof_clock(repeats * CLOCK_STEPS), CLOCK_STEPS)


def _call_s(native: ModuleType, threads: int) -> Measured:
    """Return the seconds of a call that does nothing, with hand-over to the threads and back."""

    def calls() -> None:
        for _ in range(OVERHEAD_CALLS):
            native.roof_read(0, 0, 0, 0, threads)

    calls()
    return _measured([_seconds(calls) / OVERHEAD_CALLS for _ in range(SAMPLES)])


def _peak(native: ModuleType, variants: list[int], rate: str, threads: int) -> Measured | None:
    """Return the best rate of all variants, None if none has such an instruction."""
    number, steps = RATES.index(rate), 100_000
    able = [isa for isa in variants if native.roof_flop(isa, number, 1) > 0]
    rates = (
        _rate(
            lambda repeats, isa=isa: native.roof_compute(isa, number, repeats * steps, threads),  # type: ignore[misc]
            native.roof_flop(isa, number, steps) * threads,
        )
        for isa in able
    )
    return _best(rates) if able else None


@contextmanager
def _pages(native: ModuleType, size_bytes: int) -> Iterator[int]:
    address = native.pages_alloc(size_bytes)
    if not address:
        raise CapabilityError(f"{size_bytes / MEBI:,.0f} MiB of memory are not to be had; close other programs.")
    try:
        yield address
    finally:
        native.pages_free(address, size_bytes)


def _bandwidths(
    native: ModuleType, variants: list[int], threads: tuple[int, ...], report: Callable[[str], None]
) -> Iterator[Bandwidth]:
    largest, reads = max(WORKING_SETS_BYTES), (native.roof_read, native.roof_read_in_order)
    with _pages(native, largest) as source, _pages(native, COPY_BYTES) as target:
        for count in threads:
            for size in WORKING_SETS_BYTES:
                report(f"bandwidth of {size // KIBI:,} KiB, {count} thread{'s' if count > 1 else ''}")
                yield Bandwidth(
                    count,
                    size,
                    _best(_read(read, isa, source, size, count) for isa in variants for read in reads),
                    _best(_copy(native, isa, (target, source), min(size // 2, COPY_BYTES), count) for isa in variants),
                )


def _read(read: Callable[..., int], isa: int, source: int, size: int, threads: int) -> Measured:
    return _rate(lambda passes: read(isa, source, size, passes, threads), size)


def _copy(native: ModuleType, isa: int, places: tuple[int, int], size: int, threads: int) -> Measured:
    """Return the rate of a copy whose two halves make up the working set."""
    target, source = places
    return _rate(lambda passes: native.roof_copy(isa, target, source, size, passes, threads), 2 * size)
