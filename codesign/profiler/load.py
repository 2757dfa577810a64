"""What else this machine did while a kernel was measured: Linux counters read before and after."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from codesign.units import GIGA

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class LoadCounters:
    """Counters at one moment; None where the kernel does not offer them.

    `busy_s` is of all processors, `stolen_s` of those that this process may use. `own_s` is the processor time of this
    process and of the one that started it and writes its results down; `waiting_s` the time in which this process's
    threads were ready to run and did not.
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
    the host; `waiting_fraction` is the time in which our threads waited for a processor over the time that passed. The
    kernel counts work in steps of 10 ms, so over a short time `other_cpu_count` may be below 0; means over many are
    right.
    """

    duration_s: float
    involuntary_switches_per_s: float
    other_cpu_count: float | None = None
    stolen_cpu_count: float | None = None
    waiting_fraction: float | None = None
    load_average: float | None = None


def read_load(processors: tuple[int, ...] = (), root: Path = ROOT) -> LoadCounters:
    """Return the counters of now; the process that asks measures on these processors, on any where none is named."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    busy_s, stolen_s = _processor_seconds(root, processors)
    return LoadCounters(
        now_s=time.monotonic(),
        own_s=usage.ru_utime + usage.ru_stime + _parent_s(root),
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


def _processor_seconds(root: Path, processors: tuple[int, ...]) -> tuple[float | None, float | None]:
    """Return seconds of work of all, and stolen ones of some: user, nice, system, irq, softirq; steal (man 5 proc)."""
    try:
        lines = [line.split() for line in (root / "proc/stat").read_text().split("\n") if line.startswith("cpu")]
        counts = {line[0]: [int(word) / TICKS_PER_S for word in line[1:9]] for line in lines}
        user, nice, system, _idle, _wait, irq, soft, _steal = counts["cpu"]
        names = [f"cpu{number}" for number in processors] or ["cpu"]
        return user + nice + system + irq + soft, sum(counts[name][7] for name in names)
    except (OSError, ValueError, KeyError, IndexError):
        return None, None


def _parent_s(root: Path) -> float:
    """Return the processor time of the process that started this one, 0 where the system does not say."""
    try:
        words = (root / f"proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / TICKS_PER_S
    except (OSError, ValueError, IndexError):
        return 0.0


def _waiting_s(root: Path) -> float | None:
    """Return the seconds that all threads spent on run queues (the kernel's sched-stats: the second number)."""
    try:
        texts = [path.read_text() for path in (root / "proc/self/task").glob("*/schedstat")]
        return sum(int(text.split()[1]) for text in texts) / GIGA if texts else None
    except (OSError, ValueError, IndexError):
        return None


def _number(path: Path, word: int) -> float | None:
    try:
        return float(path.read_text().split()[word])
    except (OSError, ValueError, IndexError):
        return None
