"""What else this machine did while a kernel was measured: Linux counters read before and after."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from codesign.units import MICRO

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class LoadCounters:
    """Counters at one moment; None where the kernel does not offer them.

    `busy_s` and `stolen_s` are of all processors, `own_s` the processor time of this process alone.
    """

    now_s: float
    own_s: float
    involuntary_switches: int
    busy_s: float | None
    stolen_s: float | None
    waiting_s: float | None
    load_average: float | None


@dataclass(frozen=True, slots=True)
class LoadChange:
    """What happened between two moments, as far as it is known.

    `other_cpu_count` and `stolen_cpu_count` are processors' worth of work by other processes and by other guests of
    the host; `waiting_fraction` is the share of the time in which some task waited for a processor. The kernel counts
    work in steps of 10 ms, so over a short time `other_cpu_count` may be below 0; means over many are right.
    """

    duration_s: float
    involuntary_switches_per_s: float
    other_cpu_count: float | None = None
    stolen_cpu_count: float | None = None
    waiting_fraction: float | None = None
    load_average: float | None = None


def read_load(root: Path = ROOT) -> LoadCounters:
    """Return the counters of now; the process that asks is the one that measures."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    busy_s, stolen_s = _processor_seconds(root)
    return LoadCounters(
        now_s=time.monotonic(),
        own_s=usage.ru_utime + usage.ru_stime,
        involuntary_switches=usage.ru_nivcsw,
        busy_s=busy_s,
        stolen_s=stolen_s,
        waiting_s=_waiting_s(root),
        load_average=_number(root / "proc/loadavg", 0),
    )


def load_change(before: LoadCounters, after: LoadCounters) -> LoadChange:
    """Return the rates between two readings of the same process."""
    duration_s = max(after.now_s - before.now_s, 1e-9)
    busy = _rate(before.busy_s, after.busy_s, duration_s)
    own = (after.own_s - before.own_s) / duration_s
    return LoadChange(
        duration_s=duration_s,
        involuntary_switches_per_s=(after.involuntary_switches - before.involuntary_switches) / duration_s,
        other_cpu_count=None if busy is None else busy - own,
        stolen_cpu_count=_rate(before.stolen_s, after.stolen_s, duration_s),
        waiting_fraction=_rate(before.waiting_s, after.waiting_s, duration_s),
        load_average=after.load_average,
    )


def _rate(before: float | None, after: float | None, duration_s: float) -> float | None:
    return None if before is None or after is None else (after - before) / duration_s


def _processor_seconds(root: Path) -> tuple[float | None, float | None]:
    """Return seconds of work and of stolen time since boot: user, nice, system, irq, softirq; steal (man 5 proc)."""
    try:
        words = (root / "proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _idle, _wait, irq, soft, steal = (int(word) / TICKS_PER_S for word in words[1:9])
    except (OSError, ValueError):
        return None, None
    return user + nice + system + irq + soft, steal


def _waiting_s(root: Path) -> float | None:
    """Return the seconds in which some task waited for a processor (pressure stall information)."""
    try:
        first = (root / "proc/pressure/cpu").read_text().split("\n", 1)[0]
        return int(first.rsplit("total=", 1)[1]) * MICRO
    except (OSError, ValueError, IndexError):
        return None


def _number(path: Path, word: int) -> float | None:
    try:
        return float(path.read_text().split()[word])
    except (OSError, ValueError, IndexError):
        return None
