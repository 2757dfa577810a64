"""What a GPU did around and in the rounds of one case, and what that says of their conditions."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codesign.profiler.nvml import hashed
from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry_lines import Gpu, GpuState, Telemetry
from codesign.profiler.verdict import Conditions

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """One moment of a GPU; None for what it does not say. `other_processes` are not of this measurement."""

    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_watt: float | None = None
    temperature_celsius: float | None = None
    events: tuple[str, ...] = ()
    other_processes: int | None = None


@dataclass(frozen=True, slots=True)
class GpuRound:
    """A GPU just before and just after one round of samples, and what `state_count` readings saw meanwhile."""

    before: GpuSnapshot
    after: GpuSnapshot
    mean_sm_clock_hz: float | None = None
    mean_power_watt: float | None = None
    events: tuple[str, ...] = ()
    state_count: int = 0


def first_word(visible: str | None) -> str:
    """Return the first device that CUDA_VISIBLE_DEVICES names: its index or id."""
    return "0" if visible is None else visible.split(",")[0].strip()


def chosen_gpu(telemetry: Telemetry, visible: str | None) -> Reading[Gpu]:
    """Return the GPU that CUDA calls the first, as `visible` (CUDA_VISIBLE_DEVICES) orders them.

    Its numbers are NVML's where CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    if telemetry.gpus.value is None:
        return absent(telemetry.gpus.why or "")
    word = first_word(visible)
    for gpu in telemetry.gpus.value:
        if word == str(gpu.index) or gpu.identity["uuid_hash"].value == hashed(word):
            return Reading(gpu)
    return absent(f"{VISIBLE} names none of the devices that NVML shows, or a part of one")


def round_of(
    states: Sequence[tuple[float, GpuState]], begin_s: float, end_s: float, folder: Path = Path("/proc")
) -> GpuRound | None:
    """Return what a GPU did in a round, None where none of it was seen; `states` reach from before until after it."""
    if not any(at_s > begin_s for at_s, _ in states):
        return None
    before = [one for at_s, one in states if at_s <= begin_s] or [states[0][1]]
    during = [one for at_s, one in states if begin_s < at_s <= end_s]
    after = [one for at_s, one in states if at_s > end_s] or [states[-1][1]]
    return GpuRound(
        snapshot(before[-1], folder),
        snapshot(after[0], folder),
        _mean(one.sm_clock_hz.value for one in during),
        _mean(one.power_watt.value for one in during),
        tuple(dict.fromkeys(event for one in during for event in one.events.value or ())),
        len(during),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def snapshot(now: GpuState, folder: Path = Path("/proc")) -> GpuSnapshot:
    """Return a GPU's state as records keep it."""
    return GpuSnapshot(
        now.sm_clock_hz.value,
        now.memory_clock_hz.value,
        now.power_watt.value,
        now.temperature_celsius.value,
        now.events.value or (),
        None if now.process_ids.value is None else _other_count(now.process_ids.value, folder),
    )


def _other_count(process_ids: tuple[int, ...], folder: Path) -> int | None:
    """Return how many of the processes are neither this one nor started by it; None if it cannot be told."""
    found = [_parent_of(number, folder) for number in process_ids if number != os.getpid()]
    if None in found:  # numbers of the host, seen from a container
        return None
    return sum(parent != os.getpid() for parent in found)


def _parent_of(number: int, folder: Path) -> int | None:
    try:
        return int((folder / str(number) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def with_gpu(conditions: Conditions, rounds: Sequence[GpuRound], usual_clock_hz: float | None) -> Conditions:
    """Return the conditions with what the GPU did.

    Its mean clock is that in the rounds, or after those that were too short to be seen: before them it may still rest
    between two candidates.
    """
    if not rounds:
        return conditions
    moments = [moment for one in rounds for moment in (one.before, one.after)]
    events = [event for one in rounds for event in (*one.before.events, *one.events, *one.after.events)]
    clock_hz = _mean(one.mean_sm_clock_hz or one.after.sm_clock_hz for one in rounds)
    others = [one.other_processes for one in moments if one.other_processes is not None]
    return replace(
        conditions,
        gpu_events=tuple(dict.fromkeys(events)),
        gpu_other_processes=max(others) if others else None,
        clock_fraction=clock_hz / usual_clock_hz if clock_hz and usual_clock_hz else None,
    )
