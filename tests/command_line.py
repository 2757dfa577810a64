"""The command line in the test's own process: what it prints and answers, without the start of a Python for each call.

What a process of its own can show only (start-up, signals, pipes, standard input) is tested in one.
"""

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codesign.cli.main import main
from codesign.hardware import memory_probe
from codesign.units import MEBI


def codesign(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line here, in the folder `cwd`, and return what a process of its own would."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    folder = contextlib.nullcontext() if cwd is None else contextlib.chdir(cwd)
    with folder, _same_signals(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main(list(arguments))
        except SystemExit as done:
            code = done.code
    printed, complained = (one.buffer.getvalue().decode() for one in (out, error))
    return subprocess.CompletedProcess(arguments, code, printed, complained)


def codesign_in_a_process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "codesign", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=180, check=False)


@contextlib.contextmanager
def small_memory_probe() -> Iterator[None]:
    """Let profiles that run here read a small buffer between rounds: how fast memory is, is not their point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_probe, "SIZE_MAX_BYTES", 4 * MEBI)
        yield


@contextlib.contextmanager
def _same_signals() -> Iterator[None]:
    """Put back what the command line does with a signal that ends it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
