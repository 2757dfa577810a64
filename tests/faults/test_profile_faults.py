"""`codesign profile` under kills, signals, a second profiler and a folder that takes nothing."""

import contextlib
import getpass
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from codesign.profiler.run_folder import read_head, read_run
from codesign.profiler.store import SAMPLES, read_log
from tests.command_line import codesign, small_memory_probe
from tests.fake_kernels import MODULE

OPTIONS = ("--hw", "epyc-9654", "--shapes", "64x128,32x64", "--batch", "1,2", "--threads", "1", "--libraries", "fake",
           "--kernels", MODULE, "--budget-s", "0.2")  # fmt: skip
CASES = 12
MOMENTS = 100


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "codesign", "profile", *OPTIONS, *more, "-o", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, preexec_fn=heed_interrupts)  # noqa: PLW1509 - no threads here


def heed_interrupts() -> None:
    """Undo what a shell does to tests that it runs in the background: they, and all that they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_signals_are_heeded(pid: int) -> None:
    """Wait for the first thing that the command line does: it sees to SIGTERM, and loads its modules then."""
    caught, deadline = 0, time.monotonic() + 30
    while not caught >> (signal.SIGTERM - 1) & 1:
        assert time.monotonic() < deadline, "it heeds no signal"
        time.sleep(0.01)
        caught = int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)


def finish(folder: Path, *more: str) -> tuple[int, str, str]:
    with small_memory_probe():
        done = codesign("profile", *OPTIONS, *more, "-o", str(folder))
    return done.returncode, done.stdout, done.stderr


def children_of(pid: int) -> list[str]:
    """Return the processes that were started to measure for a parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (path / "cmdline").read_text()
            if "codesign.profiler.child" in command and f'"parent_pid": {pid},' in command:
                found.append(path.name)
    return found


def assert_no_child_is_left(pid: int) -> None:
    deadline = time.monotonic() + 5
    while children_of(pid):
        assert time.monotonic() < deadline, "a child lives on"
        time.sleep(0.05)


def kill_at_random(folder: Path, moments: list[float]) -> None:
    """Kill a profile at each moment, resume after each, and check what every kill left."""
    known: set[str] = set()
    for moment_s in moments:
        with start(folder) as process:
            time.sleep(moment_s)
            process.kill()
        assert_no_child_is_left(process.pid)
        if (folder / "run.json").exists():
            done = {one.key for one in read_run(folder).measurements if not one.interrupted}
            assert known <= done
            known = done
    code, _, error = finish(folder)
    assert code == 0, error
    assert len(read_run(folder).measurements) == CASES
    written = Counter(one["key"] for one in read_log(folder / SAMPLES).records)
    assert set(written.values()) == {1}


def test_kills_lose_at_most_the_case_at_hand_and_resuming_repeats_none(tmp_path):
    moments = random.Random(5)
    kill_at_random(tmp_path / "run", [moments.uniform(0.3, 2.0) for _ in range(6)])


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    moments = random.Random(6)
    for i in range(MOMENTS // 10):
        kill_at_random(tmp_path / f"run{i}", [moments.uniform(0.2, 2.5) for _ in range(10)])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["load", "sampling"])
def test_a_signal_ends_it_in_order(tmp_path, number, code, moment):
    folder = tmp_path / "run"
    with start(folder, "--batch", "1,2,3,4") as process:
        if moment == "load":
            wait_until_signals_are_heeded(process.pid)
        else:
            process.stderr.readline()
        process.send_signal(number)
        asked_s = time.monotonic()
        process.communicate(timeout=30)
        assert time.monotonic() - asked_s < 5
    assert process.returncode == code
    assert_no_child_is_left(process.pid)
    if moment == "sampling":
        assert read_head(folder).state == f"interrupted by {signal.Signals(number).name}"
        assert len(read_run(folder).measurements) >= 1


def test_a_second_signal_ends_it_at_once_without_orphans(tmp_path):
    folder = tmp_path / "run"
    with start(folder, "--batch", "1,2,3,4") as process:
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode in (130, 143)
    assert_no_child_is_left(process.pid)
    assert read_log(folder / SAMPLES).damages == ()


def test_a_second_profiler_is_told_who_measures(tmp_path):
    with start(tmp_path / "run") as first:
        first.stderr.readline()
        code, _, error = finish(tmp_path / "run")
        assert (code, f"process {first.pid} is measuring" in error) == (5, True)
        first.kill()
    assert finish(tmp_path / "run")[0] == 0


def test_a_folder_that_takes_nothing_is_refused_before_the_first_sample():
    code, out, error = finish(Path("/proc/run"))
    assert (code != 0, out, "Error:" in error) == (True, "", True)


def test_wrong_kernels_alone_exit_6_and_show_no_speed(tmp_path):
    code, out, error = finish(tmp_path / "run", "--libraries", "broken", "--schemes", "BF16")
    assert code == 6
    assert "no case was measured validly" in error
    rows = [line.split() for line in out.splitlines() if " wrong " in line]
    assert [row[5:] for row in rows] == [["-", "-", "-", "-", "invalid(wrong_output)"]] * 4
    records = [one for one in read_run(tmp_path / "run").measurements if one.kernel == "wrong"]
    assert all(one.samples_s == () for one in records)


def test_a_run_tells_neither_host_nor_user_nor_folder(tmp_path):
    assert finish(tmp_path / "run")[0] == 0
    text = "".join((tmp_path / "run" / name).read_text() for name in ("run.json", SAMPLES, "LOCK"))
    for word in (socket.gethostname(), str(tmp_path), os.getcwd(), str(Path.home())):
        assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", json.dumps(read_head(tmp_path / "run").environment))
