"""What a GPU did around the rounds of one case, and what that says of their conditions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry import Gpu, Telemetry, hashed
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
    """A GPU just before and just after one round of samples."""

    before: GpuSnapshot
    after: GpuSnapshot


def chosen_gpu(telemetry: Telemetry, visible: str | None) -> Reading[Gpu]:
    """Return the GPU that CUDA calls the first, as `visible` (CUDA_VISIBLE_DEVICES) orders them.

    Its numbers are NVML's where CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    if telemetry.gpus.value is None:
        return absent(telemetry.gpus.why or "")
    word = "0" if visible is None else visible.split(",")[0].strip()
    for gpu in telemetry.gpus.value:
        if word == str(gpu.index) or gpu.identity()["uuid_hash"].value == hashed(word):
            return Reading(gpu)
    return absent(f"{VISIBLE} names none of the devices that NVML shows, or a part of one")


def snapshot(gpu: Gpu, folder: Path = Path("/proc")) -> GpuSnapshot:
    """Return the GPU's state of now."""
    now = gpu.state()
    return GpuSnapshot(
        now.sm_clock_hz.value,
        now.memory_clock_hz.value,
        now.power_watt.value,
        now.temperature_celsius.value,
        now.events.value or (),
        None if now.process_ids.value is None else _other_count(now.process_ids.value, folder),
    )


def _other_count(process_ids: tuple[int, ...], folder: Path) -> int | None:
    """Return how many of the processes were not started by the one that started this; None if it cannot be told."""
    found = [_parent_of(number, folder) for number in process_ids]
    if None in found:  # numbers of the host, seen from a container
        return None
    return sum(parent != os.getppid() for parent in found)


def _parent_of(number: int, folder: Path) -> int | None:
    try:
        return int((folder / str(number) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def with_gpu(conditions: Conditions, rounds: Sequence[GpuRound], usual_clock_hz: float | None) -> Conditions:
    """Return the conditions with what the GPU did.

    Its mean clock is that after the rounds: before them it may still rest between two candidates.
    """
    if not rounds:
        return conditions
    moments = [moment for one in rounds for moment in (one.before, one.after)]
    clocks_hz = [one.after.sm_clock_hz for one in rounds if one.after.sm_clock_hz is not None]
    others = [one.other_processes for one in moments if one.other_processes is not None]
    fraction = sum(clocks_hz) / len(clocks_hz) / usual_clock_hz if clocks_hz and usual_clock_hz else None
    return replace(
        conditions,
        gpu_events=tuple(dict.fromkeys(event for one in moments for event in one.events)),
        gpu_other_processes=max(others) if others else None,
        clock_fraction=fraction,
    )
