"""The parent's side of GPU telemetry: a process that asks NVML, and a thread that reads what it says.

Whatever becomes of that process, this one goes on, with telemetry absent and the reason. Nothing waits longer than the
limits here: a process that ends, is silent or says what is no reading is started once more, as a fresh one can tell
whether the GPU is lost, and then left alone.
"""

import contextlib
import importlib.util
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from codesign.errors import InputError
from codesign.profiler.children import end_text, kill_group
from codesign.profiler.nvml import BINDINGS, INSTALL_FIX
from codesign.profiler.reading import absent
from codesign.profiler.telemetry_lines import GpuState, Moment, Remark, Telemetry, read_message

CHILD = "codesign.profiler.telemetry_child"
STARTS_MAX = 2
START_LIMIT_S = 10.0  # the driver wakes up GPUs that no process uses, which takes seconds each
SILENCE_LIMIT_S = 2.0
KILL_LIMIT_S = 1.0  # a process that hangs inside the driver cannot be killed
LINE_BYTES_MAX = 2**18
HISTORY_COUNT = 6000  # five minutes


class Sampler:
    """Reads telemetry until it is closed. `warn` is told once of each thing that a GPU does not say.

    `bindings` is the module that the process asks, `pynvml` or what stands in for it.
    """

    def __init__(self, warn: Callable[[str], None], bindings: str = BINDINGS) -> None:
        self._warn, self._bindings = warn, bindings
        self._changed = threading.Condition()
        self._telemetry: Telemetry | None = None
        self._moments: deque[Moment] = deque(maxlen=HISTORY_COUNT)
        self._lost: dict[int, str] = {}
        self._why: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._follow, name="telemetry", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    @property
    def why(self) -> str | None:
        """Return why there is no telemetry any more, None while there is."""
        return self._why

    def telemetry(self) -> Telemetry:
        """Return the GPUs, waiting for them until the process has said them or is given up."""
        with self._changed:
            self._changed.wait_for(lambda: self._telemetry is not None or self._why is not None, self.start_limit_s)
            if self._telemetry is not None:
                return self._telemetry
            why = self._why or f"the telemetry process said nothing in {self.start_limit_s:.0f} s"
            return Telemetry(absent(why), absent(why))

    @property
    def start_limit_s(self) -> float:
        """Return the longest wait for the GPUs."""
        return STARTS_MAX * (START_LIMIT_S + KILL_LIMIT_S)

    def states(self, index: int, begin_s: float, end_s: float) -> tuple[tuple[float, GpuState], ...]:
        """Return what a GPU did between two times of the monotonic clock, as far as it was read, oldest first."""
        with self._changed:
            seen = [one for one in self._moments if begin_s <= one.at_s <= end_s]
        return tuple((one.at_s, one.states[index]) for one in seen if index in one.states)

    def wait_past(self, at_s: float, limit_s: float = SILENCE_LIMIT_S) -> None:
        """Wait for a moment later than a time, at most so long, and not at all where none comes any more."""

        def is_past() -> bool:
            return self._why is not None or bool(self._moments and self._moments[-1].at_s > at_s)

        with self._changed:
            self._changed.wait_for(is_past, limit_s)

    def lost(self, index: int) -> str | None:
        """Return why a GPU is lost, None if it is not."""
        with self._changed:
            return self._lost.get(index)

    def close(self) -> None:
        """End the process."""
        with self._changed:
            self._closed = True
            process = self._process
        if process is not None and process.returncode is None:
            kill_group(process.pid)
        self._thread.join(2 * KILL_LIMIT_S)

    def _follow(self) -> None:
        """Read one process after the other; the last one's end is the reason why there is no more."""
        why = _not_installed(self._bindings)
        for _ in range(STARTS_MAX if why is None else 0):
            try:
                ended = self._follow_one()
            except OSError as error:
                ended = _End(f"the telemetry process cannot be started ({type(error).__name__})")
            why = ended.why
            if self._closed or ended.in_order:
                break
        with self._changed:
            self._why = why
            self._changed.notify_all()

    def _follow_one(self) -> "_End":
        with _started(self._bindings) as process:
            with self._changed:
                self._process = process
            if self._closed:
                return _End("telemetry was closed", True)
            assert process.stdout is not None
            try:
                for line in _lines(process.stdout.fileno()):
                    self._take(line)
            except (InputError, TimeoutError) as error:
                return _End(f"the telemetry process failed: {error}")
            return self._ended(process)

    def _take(self, line: bytes) -> None:
        """Keep what a line says."""
        message = read_message(line)
        if isinstance(message, Remark):
            self._warn(message.text)
            return
        with self._changed:
            if isinstance(message, Telemetry):
                self._telemetry = self._telemetry or message
            else:
                self._moments.append(message)
            self._lost.update(message.lost)
            self._changed.notify_all()

    def _ended(self, process: subprocess.Popen[bytes]) -> "_End":
        """Return why a process that closed its pipe did so; one that found no GPU has said so before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_LIMIT_S)
        gpus = self._telemetry.gpus if self._telemetry is not None else None
        if process.returncode == 0 and gpus is not None and gpus.value is None:
            return _End(gpus.why or "", True)
        text = "it closed its pipe" if process.returncode is None else end_text(process.returncode)
        return _End(f"the telemetry process failed: {text}")


@dataclass(frozen=True, slots=True)
class _End:
    """Why a process is not read any more, and whether that was as it should be."""

    why: str
    in_order: bool = False


def read_telemetry(warn: Callable[[str], None], bindings: str = BINDINGS) -> Telemetry:
    """Return the GPUs here and what they do now."""
    with Sampler(warn, bindings) as sampler:
        return sampler.telemetry()


def _not_installed(bindings: str) -> str | None:
    """Return that the bindings are missing, without a process that would say no more."""
    try:
        found = importlib.util.find_spec(bindings)
    except (ImportError, ValueError):
        found = None
    return None if found is not None else f"nvidia-ml-py is not installed; fix: {INSTALL_FIX}"


@contextlib.contextmanager
def _started(bindings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", CHILD, bindings, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            kill_group(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_LIMIT_S)
        assert process.stdout is not None
        process.stdout.close()


def _lines(handle: int) -> Iterator[bytes]:
    """Yield lines until the pipe is closed; TimeoutError where none comes in time, InputError where one has no end."""
    buffer, limit_s = b"", START_LIMIT_S
    deadline_s = time.monotonic() + limit_s
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([handle], [], [], left_s)[0]:
            raise TimeoutError(f"it said nothing for {limit_s:g} s")
        more = os.read(handle, 2**16)
        if not more:
            return
        *lines, buffer = (buffer + more).split(b"\n")
        if len(buffer) > LINE_BYTES_MAX:
            raise InputError(f"it said what is no reading: {buffer[:60]!r}")
        yield from lines
        if lines:
            limit_s = SILENCE_LIMIT_S
            deadline_s = time.monotonic() + limit_s
