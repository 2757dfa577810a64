"""Clocks and power limits stay as they are (A52): NVML is never asked to set, lock or reset anything.

Nothing is locked, so that nothing has to be unlocked after a signal and no start has a lock to report after a kill.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from codesign.profiler.nvml import IDENTITY_FIELDS, STATE_FIELDS
from codesign.profiler.run_folder import read_run
from tests.child_nvml import FAULT, LOG, WATT
from tests.gpu_kernels import MODULE as GPU_MODULE

ROOT = Path(__file__).parents[2]
PYNVML = "from tests.child_nvml import *\nfrom tests.child_nvml import __getattr__\n"
PROFILE = ("--hw", "a100", "--shapes", "64x128", "--batch", "1", "--threads", "1", "--libraries", "fakegpu",
           "--kernels", GPU_MODULE, "--budget-s", "0.2", "--energy", "-o", "run")  # fmt: skip
READING = re.compile(r"nvml(Init|SystemGet\w+|DeviceGet\w+)$")
OTHER_TOOLS = re.compile(r"nvidia-smi.{0,20}(-lgc|-lmc|-ac\b|-pl\b|--lock|--power-limit|--reset|--gpu-reset)|rocm-smi")


def sources() -> dict[str, str]:
    """Return every file of the package and its scripts that can hold code."""
    paths = [path for folder in ("codesign", "scripts", "kernels") for path in (ROOT / folder).rglob("*")]
    texts = {}
    for path in paths:
        if path.is_file() and path.suffix in ("", ".py", ".cpp", ".h", ".hpp", ".cu", ".sh"):
            texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def test_a_whole_profile_with_energy_only_reads(tmp_path):
    (tmp_path / "pynvml.py").write_text(PYNVML, encoding="utf-8")
    log = tmp_path / "called"
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": paths, LOG: str(log), FAULT: ""}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-m", "codesign", "profile", *PROFILE]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False, env=environment
    )
    (row,) = read_run(tmp_path / "run").measurements
    assert row.energy is not None, (done.stderr, row.procedure.notes)
    assert row.energy.gross_joule / row.energy.window_s == pytest.approx(WATT, rel=0.05)
    assert row.energy.source == "gpu 0"
    called = set(log.read_text().split())
    assert {field.function for field in (*IDENTITY_FIELDS.values(), *STATE_FIELDS.values())} <= called
    assert [name for name in called if not READING.match(name)] == []


def test_no_source_names_a_function_or_tool_that_sets_clocks():
    named = {name: re.findall(r"\bnvml[A-Z]\w+", text) for name, text in sources().items()}
    assert "nvmlDeviceGetPowerUsage" in named["codesign/profiler/nvml.py"]
    types = re.compile(r"nvml\w+_t$|nvmlClocksEventReasons$")  # of nvml.h, in comments
    setting = {name: [one for one in found if not READING.match(one) and not types.match(one)]
               for name, found in named.items()}  # fmt: skip
    assert {name: found for name, found in setting.items() if found} == {}
    assert [name for name, text in sources().items() if OTHER_TOOLS.search(text)] == []


@pytest.mark.parametrize("name", ["nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks", "nvmlShutdown"])
def test_the_rule_tells_readers_from_others(name):
    assert not READING.match(name)
    assert OTHER_TOOLS.search("nvidia-smi -lgc 1410")
