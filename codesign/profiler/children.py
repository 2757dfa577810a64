"""The parent's side of child processes: start, ask with a time limit, kill with all that they started."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from codesign.codec import to_plain
from codesign.errors import MeasurementError
from codesign.profiler.child import ChildSpec
from codesign.profiler.signals import Stop

START_LIMIT_S = 120.0
POLL_S = 0.1
ANSWER_BYTES_MAX = 2**24
ERROR_TAIL_BYTES = 2000
# Read by OpenMP, MKL, OpenBLAS, Accelerate, numexpr, ONNX Runtime's and Rust's pools when they start.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)

DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # so that CUDA numbers GPUs as NVML does


class ChildFailedError(MeasurementError):
    """The child ended, was late, or answered with what is no answer: it is gone."""


class ChildRefusedError(MeasurementError):
    """The child could not do what it was asked, and lives on."""


class ChildOutOfMemoryError(ChildRefusedError):
    """The child asked for more memory than there is; what it holds is given back by ending it."""


class Interrupted(Exception):  # noqa: N818 - no error: the user asked for it
    """The user asked to stop while a child was at work."""


class Child:
    """One running child process."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "codesign.profiler.child", json.dumps(to_plain(spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(spec.threads)) | DEVICE_ORDER,
            start_new_session=True,
            bufsize=0,
        )
        self._buffer = b""

    @property
    def pid(self) -> int:
        """Return its process number."""
        return self._process.pid

    def ask(self, order: dict[str, Any], limit_s: float, stop: Stop) -> dict[str, Any]:
        """Return the answer to an order; ChildFailedError, ChildRefusedError or Interrupted where there is none."""
        self.begin(order)
        return self.answer(limit_s, stop)

    def begin(self, order: dict[str, Any]) -> None:
        """Give an order; its answer is the next one. ChildFailedError where the child is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        except (BrokenPipeError, ValueError):
            raise self._failure() from None

    def answer(self, limit_s: float, stop: Stop) -> dict[str, Any]:
        """Return the next answer."""
        line = self._read_line(time.monotonic() + limit_s, limit_s, stop)
        try:
            value = json.loads(line)
            accepted = value["ok"]
        except (ValueError, TypeError, KeyError):
            self.kill()
            raise ChildFailedError(f"it answered with what is no answer: {line[:60]!r}") from None
        if not accepted and value.get("out_of_memory"):
            raise ChildOutOfMemoryError(str(value.get("reason")))
        if not accepted:
            raise ChildRefusedError(str(value.get("reason")))
        answer: dict[str, Any] = value
        return answer

    def _read_line(self, deadline_s: float, limit_s: float, stop: Stop) -> bytes:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if stop.overdue:
                self.kill()
                raise Interrupted
            if time.monotonic() > deadline_s:
                self.kill()
                raise ChildFailedError(f"it took longer than {limit_s:.0f} s")
            if select.select([handle], [], [], POLL_S)[0]:
                more = os.read(handle, 2**16)
                if not more or len(self._buffer) > ANSWER_BYTES_MAX:
                    raise self._failure()
                self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _failure(self) -> ChildFailedError:
        """Return why the child is gone, after making sure that it is."""
        kill_group(self._process.pid)  # one that has ended is not reaped yet, so that its number is still its own
        text = end_text(self._process.wait()) + self._last_words()
        self.kill()
        return ChildFailedError(text)

    def _last_words(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - ERROR_TAIL_BYTES))
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        words = [" ".join(line.split()) for line in lines if line.strip()]
        return f": {words[-1][:200]}" if words else ""

    def kill(self) -> None:
        """End the child and all that it started, and wait until it is gone."""
        if self._process.returncode is None:
            kill_group(self._process.pid)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def kill_group(pid: int) -> None:
    """Kill a process group; one that is gone is no error."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def end_text(code: int) -> str:
    """Return how a process ended, from its exit code as Python gives it."""
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
