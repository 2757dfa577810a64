"""A telemetry process that crashes, hangs or says garbage: the run goes on without, or ends as device_lost (A54)."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codesign.profiler import telemetry
from codesign.profiler.candidates import Question, RunPlan, Shape, make_plan
from codesign.profiler.discover import load_catalog
from codesign.profiler.gpu_states import chosen_gpu
from codesign.profiler.gpu_watch import DeviceLostError, GpuWatch
from codesign.profiler.run_folder import open_run, read_run
from codesign.profiler.runner import Children, Instruments, Runner
from codesign.profiler.signals import Stop
from codesign.profiler.telemetry import Sampler
from codesign.profiler.verdict import Kind
from tests.child_nvml import MODULE
from tests.command_line import codesign
from tests.gpu_kernels import MODULE as GPU_MODULE
from tests.measured_rows import run_head
from tests.profile_plans import settings

ROOT = Path(__file__).parents[2]
LONG_WAIT_S = 60.0
ENDS = {
    "die@0": "the telemetry process failed: it was ended by SIGSEGV",
    "die@6": "the telemetry process failed: it was ended by SIGSEGV",
    "leave@0": "the telemetry process failed: it ended with exit code 3",
    "garble@6": "the telemetry process failed: it said what is no reading: b'{",
    "flood@6": "the telemetry process failed: it said what is no reading: b'xxxx",
    "hang@0": "the telemetry process failed: it said nothing for 2 s",
    "hang@6": "the telemetry process failed: it said nothing for 1 s",
}


@pytest.fixture
def limits(monkeypatch):
    """Wait less long for what hangs."""

    def shorten(fault: str) -> None:
        monkeypatch.setenv("CHILD_NVML", fault)
        if fault == "hang@0":
            monkeypatch.setattr(telemetry, "START_LIMIT_S", 2.0)
        if fault == "hang@6":
            monkeypatch.setattr(telemetry, "SILENCE_LIMIT_S", 1.0)

    return shorten


def processes() -> list[int]:
    """Return the telemetry processes of this one that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_text().split("\0")
            if telemetry.CHILD in words and str(os.getpid()) in words:
                found.append(int(path.name))
    return found


@pytest.mark.parametrize("fault", ENDS)
def test_each_fault_is_a_reason_after_a_second_try(monkeypatch, limits, fault):
    limits(fault)
    starts = []
    popen = telemetry.subprocess.Popen
    monkeypatch.setattr(telemetry.subprocess, "Popen", lambda *a, **k: starts.append(0) or popen(*a, **k))
    with Sampler(lambda _: None, MODULE) as sampler:
        told = sampler.telemetry()
        sampler.wait_past(float("inf"), LONG_WAIT_S)
        assert (told.gpus.value is None) == fault.endswith("@0")
        assert sampler.why.startswith(ENDS[fault])
        assert len(starts) == telemetry.STARTS_MAX
        begin_s = time.monotonic()
        sampler.wait_past(float("inf"), LONG_WAIT_S)
        assert time.monotonic() - begin_s < LONG_WAIT_S / 2  # what is gone is not waited for
    assert processes() == []


def gpu_plan(batches: tuple[int, ...] = (1, 2)) -> RunPlan:
    question = Question((Shape(64, 128),), (), batches, (1,), ("fakegpu",), (), "rotating", 3, device="cuda")
    return make_plan(question, load_catalog((GPU_MODULE,)), {}, 1e5)


@contextlib.contextmanager
def watched() -> Iterator[GpuWatch]:
    with Sampler(lambda _: None, MODULE) as sampler:
        yield GpuWatch(sampler, chosen_gpu(sampler.telemetry(), None))


class Late(Runner):
    """Takes its first round when telemetry has come to its end."""

    def _round(self, turn):
        self._watch._sampler.wait_past(float("inf"), LONG_WAIT_S)
        return super()._round(turn)


def measure(folder: Path, watch: GpuWatch, kind: type[Runner] = Runner) -> list:
    with open_run(folder, run_head()) as writer:
        how = settings(modules=(GPU_MODULE,), usual_clock_hz=watch.usual_clock_hz)
        kind(writer, how, Children((GPU_MODULE,)), Stop(), lambda _: None, Instruments(watch)).run(gpu_plan())
    return list(read_run(folder).measurements)


@pytest.mark.parametrize("fault", ["die@0", "die@6", "garble@6"])
def test_the_run_goes_on_without_telemetry_and_rows_say_why(tmp_path, limits, fault):
    limits(fault)
    with watched() as watch:
        rows = measure(tmp_path, watch, Late)
    for one in rows:
        assert one.verdict.kind is not Kind.INVALID
        assert len(one.samples_s) >= 12
        assert one.procedure.notes["telemetry"].startswith(f"absent, because {ENDS[fault]}")
        assert one.conditions.clock_fraction is None
    assert len(rows) == 2


def test_with_telemetry_every_round_has_its_readings(tmp_path, monkeypatch):
    monkeypatch.delenv("CHILD_NVML", raising=False)
    with watched() as watch:
        rows = measure(tmp_path, watch)
    for one in rows:
        assert len(one.gpu_rounds) == len(one.procedure.round_sizes)
        assert "telemetry" not in one.procedure.notes
        assert one.conditions.clock_fraction == pytest.approx(1755 / 1980)
        assert one.gpu_rounds[0].after.power_watt == 350.0


def test_a_lost_gpu_ends_the_run_and_keeps_the_samples_so_far(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    monkeypatch.setenv("CHILD_NVML", f"lose@{gone}")

    class Losing(Runner):
        def _round(self, turn):
            if turn.sampling.rounds:
                gone.touch()
                self._watch._sampler.wait_past(time.perf_counter() + 0.2, LONG_WAIT_S)
            return super()._round(turn)

    with watched() as watch, pytest.raises(DeviceLostError, match="NVML: GPU is lost"):
        measure(tmp_path / "run", watch, Losing)
    rows = read_run(tmp_path / "run").measurements
    assert len(rows) == 1
    for one in rows:
        assert (one.verdict.kind, one.verdict.reasons[0].name) == (Kind.INVALID, "device_lost")
        assert "restart the machine or reset the GPU" in one.verdict.reasons[0].evidence
        assert one.interrupted
        assert len(one.samples_s) > 0


def test_no_other_fault_hides_that_the_gpu_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD_NVML", "lose@3")

    class Failing(Children):
        def ask(self, entry, order, limit_s, stop):
            from codesign.profiler.children import ChildRefusedError

            time.sleep(0.5)
            raise ChildRefusedError("CUDA error: unspecified launch failure")

    with watched() as watch, open_run(tmp_path, run_head()) as writer, pytest.raises(DeviceLostError):
        Runner(writer, settings(), Failing(()), Stop(), lambda _: None, Instruments(watch)).run(gpu_plan())
    assert read_run(tmp_path).measurements == ()


PYNVML = "from tests.child_nvml import *\nfrom tests.child_nvml import __getattr__\n"
PROFILE = ("--hw", "a100", "--shapes", "64x128", "--batch", "1,2,4", "--threads", "1", "--libraries", "fakegpu",
           "--kernels", GPU_MODULE, "--budget-s", "2", "-o", "run")  # fmt: skip


def profile(folder: Path, fault: str) -> subprocess.CompletedProcess[str]:
    (folder / "fakes").mkdir(exist_ok=True)
    (folder / "fakes" / "pynvml.py").write_text(PYNVML, encoding="utf-8")
    paths = os.pathsep.join((str(folder / "fakes"), str(ROOT)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        patch.syspath_prepend(folder / "fakes")
        patch.setenv("CHILD_NVML", fault)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return codesign("profile", *PROFILE, cwd=folder)


def test_the_command_ends_as_device_lost_with_exit_5_and_resumes(tmp_path):
    # Each process starts with one reading of each of its two GPUs; the command starts two.
    lost = profile(tmp_path, "lose@12")
    assert lost.returncode == 5, lost.stderr
    assert "Stopped: device_lost: NVML: GPU is lost" in lost.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"].startswith("device_lost: NVML: GPU is lost")
    resumed = profile(tmp_path, "")
    assert resumed.returncode == 0, resumed.stderr
    run = read_run(tmp_path / "run")
    assert (run.head.state, len(run.measurements)) == ("complete", 3)
    assert not any(one.interrupted for one in run.measurements)


def test_a_gpu_that_is_lost_before_the_run_is_said_at_once(tmp_path):
    done = profile(tmp_path, "lose@1")
    assert done.returncode == 5
    assert "NVML: GPU is lost" in done.stderr
