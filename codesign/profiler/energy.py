"""Joules of one call: the difference of an energy counter over seconds of repeated calls, idle power kept apart.

Counters move in steps of 20 to 100 ms, so a window begins and ends at an observed step and lasts at least 5 s; a
shorter one would be wrong by whole steps. Here the process that makes the calls reads the counter, as it may that of
processors; GPUs are in `gpu_energy.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from codesign.errors import MeasurementError
from codesign.profiler.rapl import RaplMeter
from codesign.profiler.reading import Reading, absent
from codesign.profiler.timing import Clock, Timer, WarmUp

MIN_WINDOW_S = 5.0
LONGEST_STEP_S = 0.25
COUNTER_WAIT_S = 2 * LONGEST_STEP_S
COUNTER, INTEGRATED_POWER = "counter", "integrated_power"
NO_COLD_ENERGY = "emptying the caches takes energy of its own; measure with rotating or hot weights"


@dataclass(frozen=True, slots=True)
class EnergySource:
    """A counter of joules; `name` says what it counts."""

    name: str
    counter_joule: Callable[[], Reading[float]]


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of `call_count` calls in `window_s` seconds, and the power of the same device at rest, if known."""

    method: str
    source: str
    gross_joule: float
    window_s: float
    call_count: int
    idle_watt: float | None
    idle_why: str | None = None

    @property
    def gross_joule_per_call(self) -> float:
        """Return the joules of a call with the power that the device draws at rest."""
        return self.gross_joule / self.call_count

    @property
    def net_joule_per_call(self) -> float | None:
        """Return the joules of a call beyond rest, None if that power is not known."""
        if self.idle_watt is None:
            return None
        return (self.gross_joule - self.idle_watt * self.window_s) / self.call_count


def processor_energy() -> EnergySource:
    """Return the counter of this machine's processors and memory."""
    return EnergySource("RAPL", RaplMeter().read_joule)


def energy_of_calls(
    timer: Timer, found: WarmUp, source: EnergySource, idle: Reading[float], window_s: float = MIN_WINDOW_S
) -> Reading[Energy]:
    """Return the energy of a prepared kernel's calls, run as its samples are."""
    if timer.work.before_sample is not None:
        return absent(NO_COLD_ENERGY)
    calls = found.calls_per_sample
    energy = measure_energy(lambda: timer.sample(calls), source, timer.clock, idle, window_s)
    if energy.value is None:
        return energy
    return Reading(replace(energy.value, call_count=calls * energy.value.call_count))


@dataclass(frozen=True, slots=True)
class _Window:
    """What was read at both ends of a window."""

    joule: float
    duration_s: float
    call_count: int


def measure_energy(
    run: Callable[[], object],
    source: EnergySource,
    clock: Clock,
    idle: Reading[float],
    window_s: float = MIN_WINDOW_S,
) -> Reading[Energy]:
    """Return the energy of repeated calls, or why there is none; a window that is too short is an error.

    `idle` is the power at rest, as `idle_watt` measures it.
    """
    _refuse_short(window_s)
    window = _counted(run, source.counter_joule, clock, window_s)
    if window.value is None:
        return absent(window.why or f"{source.name} gives no energy")
    seen = window.value
    return Reading(Energy(COUNTER, source.name, seen.joule, seen.duration_s, seen.call_count, idle.value, idle.why))


def idle_watt(
    source: EnergySource, clock: Clock, sleep: Callable[[float], object], window_s: float = MIN_WINDOW_S
) -> Reading[float]:
    """Return the mean power of a device that does nothing, by the same means as `measure_energy`."""
    energy = measure_energy(lambda: sleep(0.005), source, clock, absent("at rest"), window_s)
    if energy.value is None:
        return absent(energy.why or "")
    return Reading(energy.value.gross_joule / energy.value.window_s)


def _refuse_short(window_s: float) -> None:
    if not window_s >= MIN_WINDOW_S:
        raise MeasurementError(
            f"An energy window of {window_s:g} s is too short for a counter that moves every 20 to 100 ms; "
            f"it needs {MIN_WINDOW_S:g} s."
        )


def _counted(
    run: Callable[[], object], read: Callable[[], Reading[float]], clock: Clock, window_s: float
) -> Reading[_Window]:
    """Return the counter's difference from one step to the first one after the window."""
    begin = _run_to_step(run, read, clock)
    if begin.value is None:
        return absent(begin.why or "")
    start_joule, start_s, _ = begin.value
    calls = 0
    while clock.now_s() - start_s < window_s:
        run()
        calls += 1
    end = _run_to_step(run, read, clock)
    if end.value is None:
        return absent(end.why or "")
    end_joule, end_s, more_calls = end.value
    if end_joule < start_joule:
        return absent("the energy counter went backwards during the window (was the driver reloaded?); measure again")
    if end_joule == start_joule:
        return absent("the energy counter did not move in the whole window; this device does not count")
    return Reading(_Window(end_joule - start_joule, end_s - start_s, calls + more_calls))


def _run_to_step(
    run: Callable[[], object], read: Callable[[], Reading[float]], clock: Clock
) -> Reading[tuple[float, float, int]]:
    """Return the counter just after it moved, the time of that, and the calls made while waiting for it."""
    begin_s, first, calls = clock.now_s(), read(), 0
    while first.value is not None:
        run()
        calls += 1
        seen, now_s = read(), clock.now_s()
        if seen.value is None:
            return absent(seen.why or "")
        if seen.value != first.value or now_s - begin_s > LONGEST_STEP_S:
            return Reading((seen.value, now_s, calls))
    return absent(first.why or "")
