"""`codesign profile` where a GPU is hot or capped, where energy is or is not counted, and with cold weights."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from codesign.profiler import gpu_watch
from codesign.profiler.records import Measurement
from codesign.profiler.run_folder import Run, read_run
from tests.command_line import codesign, small_memory_probe
from tests.fake_kernels import MODULE
from tests.gpu_kernels import MODULE as GPU_MODULE

ROOT = Path(__file__).parents[2]
PYNVML = """
from tests.fake_nvml import FakeNvml, FakeNvmlError

fake = FakeNvml(failing={failing}, answers={answers})


def __getattr__(name):
    return getattr(fake, name)


nvmlDeviceGetTotalEnergyConsumption = fake.nvmlDeviceGetTotalEnergyConsumption
"""
GPU = ("--hw", "a100", "--shapes", "64x128", "--batch", "1", "--threads", "1", "--libraries", "fakegpu",
       "--kernels", GPU_MODULE, "--budget-s", "0.2", "-o", "run")  # fmt: skip
CPU = ("--hw", "epyc-9654", "--shapes", "64x128", "--batch", "1", "--threads", "1", "--libraries", "fake",
       "--schemes", "BF16", "--kernels", MODULE, "--budget-s", "0.2", "-o", "run")  # fmt: skip


def profile(folder: Path, *options: str, failing: str = "{}", answers: str = "{}") -> subprocess.CompletedProcess[str]:
    """Run the command on a machine whose GPUs answer as said."""
    (folder / "fakes").mkdir(exist_ok=True)
    (folder / "fakes" / "pynvml.py").write_text(PYNVML.format(failing=failing, answers=answers), encoding="utf-8")
    paths = os.pathsep.join((str(folder / "fakes"), str(ROOT)))
    with pytest.MonkeyPatch.context() as patch, small_memory_probe():
        patch.setenv("PYTHONPATH", paths)  # NVML is asked in a process of its own, which finds the fake one there
        patch.syspath_prepend(folder / "fakes")  # whether there is one is looked up here
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return codesign("profile", *options, cwd=folder)


def rows(folder: Path) -> tuple[Run, tuple[Measurement, ...]]:
    run = read_run(folder / "run")
    return run, run.measurements


def test_a_gpu_that_throttles_for_heat_makes_the_run_exit_6_without_a_speed(tmp_path):
    answers = '{"nvmlDeviceGetCurrentClocksEventReasons": 0x40, "nvmlDeviceGetClockInfo": 1188}'
    done = profile(tmp_path, *GPU, "--json", answers=answers)
    assert done.returncode == 6, done.stderr
    document = json.loads(done.stdout, parse_constant=pytest.fail)
    (row,) = document["measurements"]
    assert row["verdict"]["kind"] == "invalid"
    assert {"name": "throttled", "evidence": "hw_thermal_slowdown, mean clock 60 % of the usual"} in (
        row["verdict"]["reasons"]
    )
    assert len(row["gpu_rounds"]) == len(row["procedure"]["round_sizes"])
    assert row["gpu_rounds"][0]["after"]["temperature_celsius"] == 61.0


def test_a_power_cap_alone_makes_rows_suspect_and_tells_the_clock(tmp_path):
    answers = '{"nvmlDeviceGetCurrentClocksEventReasons": 0x4, "nvmlDeviceGetClockInfo": 1782}'
    done = profile(tmp_path, *GPU, answers=answers)
    _, (row,) = rows(tmp_path)
    assert "power_capped" in str(row.verdict)
    assert not row.is_invalid
    assert (row.conditions.clock_fraction, row.conditions.gpu_events) == (0.9, ("sw_power_cap",))
    assert "mean clock 90 % of the usual" in " ".join(done.stdout.split())


def test_without_nvml_the_gpu_is_timed_all_the_same(tmp_path):
    profile(tmp_path, *GPU, failing='{"nvmlInit": FakeNvmlError(12)}')
    run, (row,) = rows(tmp_path)
    assert (row.gpu_rounds, row.is_invalid, row.summary is None) == ((), False, False)
    assert run.head.energy == {"cuda": {"value": None, "why": "not asked for; --energy measures it"}}


def test_a_gpu_that_counts_no_energy_gives_null_and_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_watch, "WINDOW_S", 0.3)  # nothing is counted, however long one waits
    failing = ", ".join(f'"{name}": FakeNvmlError(3)' for name in
                        ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"))  # fmt: skip
    done = profile(tmp_path, *GPU, "--batch", "1,2", "--energy", failing=f"{{{failing}}}")
    run, found = rows(tmp_path)
    assert [(one.energy, one.summary is None) for one in found] == [(None, False)] * 2
    assert "not supported" in run.head.energy["cuda"]["why"]
    assert done.stderr.count("No energy is measured of cuda: NVML: not supported") == 1


def test_cold_weights_are_recorded_as_such_and_called_once_per_sample(tmp_path):
    done = profile(tmp_path, *CPU[2:], "--hw", "x86-avx512", "--cache", "cold")
    run, found = rows(tmp_path)
    assert {(one.case.cache, one.procedure.copies, one.procedure.warm_up.calls_per_sample) for one in found} == {
        ("cold", 1, 1)
    }, done.stderr
    assert run.head.critical["cache of weights"] == "cold"
    assert all(one.summary.median_s > 3e-4 for one in found if one.kernel == "plain")


def test_suspect_rows_are_tried_again_only_on_demand(tmp_path):
    suspects = (*CPU[:-4], "--budget-s", "0.0001", "-o", "run")
    for more, tries in ((), 1), ((), 1), (("--retry-suspect",), 2):
        profile(tmp_path, *suspects, *more)
        assert set(tries_of(tmp_path).values()) <= {1, tries}


def tries_of(folder: Path) -> dict[str, int]:
    keys = [json.loads(line)["rec"]["key"] for line in (folder / "run" / "samples.jsonl").read_text().splitlines()]
    return {key: keys.count(key) for key in keys}


def test_repeats_are_kept_and_an_answer_to_another_question_is_not_resumed(tmp_path):
    assert profile(tmp_path, *CPU, "--repeat", "2").returncode in (0, 6)
    run, found = rows(tmp_path)
    assert {one.spread.process_count for one in found} == {2}
    assert "--repeat 2" in run.head.command
    refused = profile(tmp_path, *CPU)
    assert (refused.returncode, "repeat: 2 then, 1 now" in refused.stderr) == (3, True)
