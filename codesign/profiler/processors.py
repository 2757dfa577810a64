"""The processors of this machine: which of them a kernel is pinned to, and how large their last-level cache is."""

import os
import re
from pathlib import Path

from codesign.errors import CapabilityError
from codesign.units import KIBI, MEBI

CPU_FOLDER = Path("/sys/devices/system/cpu")
_SIZE = re.compile(r"(\d+)([KM])")


def pinned_processors(threads: int, folder: Path = CPU_FOLDER) -> tuple[int, ...]:
    """Return the processors of so many threads: one per core and the last ones, as the first serve most interrupts.

    Empty where the system does not pin processes; CapabilityError if there are fewer cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    cores = {_core(number, folder): number for number in reversed(allowed)}
    chosen = sorted(cores.values())
    if threads > len(chosen):
        raise CapabilityError(f"{threads} threads were asked for; this process may use {len(chosen)} cores.")
    return tuple(chosen[-threads:])


def core_count(folder: Path = CPU_FOLDER) -> int:
    """Return how many cores this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_core(number, folder) for number in os.sched_getaffinity(0)})


def _core(number: int, folder: Path) -> str:
    """Return what the threads of one core share."""
    try:
        return (folder / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)


def last_level_cache_bytes(folder: Path = CPU_FOLDER) -> float | None:
    """Return the size of the largest cache that the system names, None where it names none."""
    sizes = []
    for path in folder.glob("cpu0/cache/index*/size"):
        match = _SIZE.fullmatch(path.read_text().strip())
        if match:
            sizes.append(int(match[1]) * (KIBI if match[2] == "K" else MEBI))
    return float(max(sizes)) if sizes else None


def available_memory_bytes(path: Path = Path("/proc/meminfo")) -> float | None:
    """Return the memory that programs can still get, None where the system does not say."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return float(int(match[1]) * KIBI) if match else None
