"""The process that runs one kernel: it obeys orders, one JSON line each, and answers each with one line.

It is started by `children.py` as `python -m codesign.profiler.child SPEC`. Whatever a library prints goes to standard
error; answers go through a copy of standard output that libraries do not know. It ends when its orders end.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from codesign.codec import from_plain, to_plain
from codesign.errors import CodesignError, InputError
from codesign.profiler.memory_errors import memory_text

if TYPE_CHECKING:
    from codesign.profiler.kernel import Prepared
    from codesign.profiler.timing import Timer

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Which kernel of which modules runs, on which processors; empty where it is not pinned."""

    library: str
    kernel: str
    scheme: str
    threads: int
    affinity: tuple[int, ...]
    modules: tuple[str, ...]
    parent_pid: int
    device: str = "cpu"


class Session:
    """The kernel and what is prepared of it."""

    def __init__(self, spec: ChildSpec) -> None:
        from codesign.profiler.discover import load_catalog
        from codesign.profiler.ranges import NOTHING, Ranges

        self.ranges, self.spec = Ranges(), spec
        catalog = load_catalog(spec.modules)
        self.kernel = catalog.find(spec.library, spec.kernel, spec.scheme, spec.device)
        self.check_output = catalog.check_of(spec.library)
        self.case_range = NOTHING
        self.timer: Any = None
        self.gpu: Any = None
        self.found: Any = None

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        """Pack the copies of a case, check the output, and say what one call reads."""
        from codesign.profiler.records import case_from_json

        self.release(order)
        case: Any = case_from_json(order["case"], "the order")
        self.case_range = self.ranges.range("case")
        self.case_range.__enter__()
        prepared = self.kernel.prepare(case, order["copies"])
        check = self.check_output(prepared, case)
        self.timer, self.gpu = make_timer(prepared, order["flush_bytes"], case.threads), prepared.gpu
        return {
            "check": to_plain(check),
            "copies": prepared.copies,
            "read_bytes": prepared.read_bytes,
            "math_dtype": prepared.math_dtype,
            "timing": self.timer.note,
        }

    def warm_up(self, order: dict[str, Any]) -> dict[str, Any]:
        """Warm the prepared kernel up, which starts the threads of its library."""
        from codesign.profiler.timing import Rule, warm_up

        with self.ranges.range("warm-up"):
            self.found = warm_up(self.timer, from_plain(Rule, order["rule"], "the order"))
        return {"warm_up": to_plain(self.found)}

    def round(self, order: dict[str, Any]) -> dict[str, Any]:
        """Take one round of samples, and say from when to when by the monotonic clock."""
        from codesign.profiler.load import load_change, read_load
        from codesign.profiler.timing import take_round

        with caller_on_first(self.spec.affinity), self.ranges.range("round", order["samples"]):
            before, begin_s = read_load(self.spec.affinity), self.timer.clock.now_s()
            taken = take_round(self.timer, self.found, order["samples"])
            end_s, load = self.timer.clock.now_s(), load_change(before, read_load(self.spec.affinity))
        return {"round": to_plain(taken), "load": to_plain(load), "begin_s": begin_s, "end_s": end_s}

    def energy(self, order: dict[str, Any]) -> dict[str, Any]:
        """Measure the joules of a call over a window of repeated ones; on a GPU, whoever watches it reads them."""
        from codesign.profiler.energy import energy_of_calls, processor_energy
        from codesign.profiler.gpu_energy import keep_busy
        from codesign.profiler.reading import Reading

        with caller_on_first(self.spec.affinity), self.ranges.range("energy"):
            if self.kernel.device == "cuda":
                busy = keep_busy(self.timer, self.found)
                return {"busy": to_plain(busy.value), "why": busy.why}
            found = energy_of_calls(self.timer, self.found, processor_energy(), Reading(order["idle_watt"]))
        return {"energy": to_plain(found.value), "why": found.why}

    def release(self, _order: dict[str, Any]) -> dict[str, Any]:
        """Let go of the prepared case and its memory, and say how much the process still holds."""
        from codesign.profiler.ranges import NOTHING

        self.timer = self.found = None
        if self.gpu is not None:
            self.gpu.give_back()
        self.case_range.__exit__(None, None, None)
        self.case_range = NOTHING
        return {"held_bytes": resident_bytes()}

    @property
    def orders(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return what can be ordered."""
        return {
            "prepare": self.prepare,
            "warm_up": self.warm_up,
            "round": self.round,
            "energy": self.energy,
            "release": self.release,
        }


def resident_bytes() -> int:
    """Return the memory that this process holds, 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def make_timer(prepared: "Prepared", flush_bytes: int, threads: int) -> "Timer":
    """Return what times a prepared kernel: by the clock of its GPU, if it brings one."""
    from codesign.profiler.flush import make_flush
    from codesign.profiler.graph_timer import GraphTimer
    from codesign.profiler.timing import MonotonicClock, Timer, Work

    gpu = prepared.gpu
    if gpu is None:
        flush = make_flush(flush_bytes, threads) if flush_bytes else None
        return Timer(Work(prepared.run, prepared.copies, flush), MonotonicClock())
    flush = gpu.flush(flush_bytes) if flush_bytes else None
    return GraphTimer(Work(prepared.run, prepared.copies, flush), MonotonicClock(), gpu)


def obey(session: Session, orders: BinaryIO, answers: BinaryIO) -> None:
    """Answer every order until there are no more."""
    for line in orders:
        order = json.loads(line)
        try:
            answer = {"ok": True, **session.orders[order["order"]](order)}
        except Exception as error:  # the kernels are other people's; whatever they raise is the row's reason
            memory = memory_text(error)
            answer = {"ok": False, "reason": memory or _reason(error), "out_of_memory": memory is not None}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, CodesignError) else f"{type(error).__name__}: {text}"


def die_with_parent(parent_pid: int) -> None:
    """Let the system kill this process when the one that started it ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def pin(affinity: tuple[int, ...]) -> None:
    """Keep this process and the threads that it starts on these processors."""
    if affinity:
        os.sched_setaffinity(0, affinity)


@contextlib.contextmanager
def caller_on_first(affinity: tuple[int, ...]) -> Iterator[None]:
    """Keep the calling thread on the first processor while it measures.

    Workers of our own pool sit on the others, one each; a caller that wanders would share one with a worker. Before,
    the caller may use all: threads that a library starts inherit its processors.
    """
    if len(affinity) < 2:
        yield
        return
    os.sched_setaffinity(0, affinity[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, affinity)


def main(text: str) -> int:
    """Run until the orders end; a kernel that cannot be loaded is the first answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    spec = from_plain(ChildSpec, json.loads(text), "the child's task")
    die_with_parent(spec.parent_pid)
    pin(spec.affinity)
    try:
        session = Session(spec)
    except InputError as error:
        answers.write(json.dumps({"ok": False, "reason": str(error)}).encode() + b"\n")
        answers.flush()
        return 1
    answers.write(b'{"ok": true}\n')
    answers.flush()
    obey(session, sys.stdin.buffer, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
