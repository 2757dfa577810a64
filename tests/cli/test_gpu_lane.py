"""scripts/gpu_lane from end to end with a Python that says it has a GPU: its measurements are recorded runs."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codesign.profiler.records import Measurement
from codesign.profiler.statistics import summarize
from codesign.profiler.verdict import Kind, Reason, Verdict
from tests.gpu_runs import HARDWARE, attention_row, kernel_rows, throttled, with_energy, write_lane
from tests.measured_rows import gemm_row

LANE = Path(__file__).parents[2] / "scripts" / "gpu_lane"
# `profile -o RUN` copies the recorded run of that name; what needs a GPU says that it ran; the rest is real.
STAND_IN = """#!/usr/bin/env bash
for last; do :; done
case "$*" in
    *get_device_name*) echo "NVIDIA H200" ;;
    "-m codesign profile"*)
        while [ "$1" != -o ]; do shift; done
        name=$(basename "$2")
        [ -e "$RECORDED/$name" ] || {{ echo "no GPU row"; exit 6; }}
        [ "$name" != "$SLOW" ] || sleep 60
        cp -r "$RECORDED/$name" "$2" ;;
    scripts/gpu_roofs.py*) cp "$RECORDED/roofs.json" "$last" ;;
    scripts/gpu_compile.py*|"-m pytest"*|"-m codesign doctor"*) echo "ran: $*" ;;
    *) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


def recorded(folder: Path) -> Path:
    four = kernel_rows("codesign", "w4a16_gemm", "W4A16-g128", 0.95, 0.35)
    plain = kernel_rows("torch", "linear", "FP16", 0.85, 0.9)
    attention = [attention_row("fp16", 0.9), attention_row("int8", 0.7)]
    rows = [*four, *plain, throttled(four[0])]
    return write_lane(folder, gemm=rows, attention=attention, energy=[with_energy(plain[10], 0.03)])


def run_lane(stand_in: Path, data: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    values = os.environ | {"PYTHON": str(stand_in), "RECORDED": str(data), "SLOW": "", **environment}
    return subprocess.run(["bash", str(LANE), *words], env=values, capture_output=True, text=True, check=False)


def test_the_lane_leaves_runs_sheets_a_page_and_what_was_reached(stand_in, tmp_path):
    out = tmp_path / "out"
    done = run_lane(stand_in, recorded(tmp_path / "recorded"), str(out), "h200", SECONDS_TOTAL="900")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (out / "README.md").read_text()
    assert "| attention of decode, fp16 cache | 80 % of the read bandwidth | 90 %" in text
    assert re.search(r"attention of decode, int8 cache .* missed \|", text)
    assert "FP8-A16, M 1 to 16 | 80 % of the read bandwidth | no valid row | not measured" in text
    assert {one.name for one in (out / "sheets").iterdir()} == {"h200-sxm.codesign.yaml", "h200-sxm.torch.yaml"}
    assert "kv_attention" in (out / "run" / "samples.jsonl").read_text()
    assert (out / "report.html").stat().st_size > 1e6
    assert "ran: " in (out / "check.log").read_text()
    again = run_lane(stand_in, tmp_path / "recorded", str(out), "h200", SECONDS_TOTAL="900")
    assert "fit failed" not in again.stdout


def test_no_step_outlasts_the_whole_and_the_page_is_written_all_the_same(stand_in, tmp_path):
    out = tmp_path / "out"
    data = recorded(tmp_path / "recorded")
    done = run_lane(stand_in, data, str(out), SECONDS_TOTAL="64", SLOW="gemm")
    assert done.returncode == 1
    assert "gemm failed, code 124" in done.stdout
    assert "== attention: no time is left" in done.stdout
    assert "no time is left" in (out / "attention.log").read_text()
    assert (
        "| W4A16-g128, M 1 to 16 | 80 % of the read bandwidth | no valid row | not measured |"
        in (out / "README.md").read_text()
    )


def rows_of_checks(second_s: float) -> dict[str, list[Measurement]]:
    one = kernel_rows("codesign", "w4a16_gemm", "W4A16-g128", 0.9)[0]
    other = replace(gemm_row(second_s, scheme="W4A16-g128", library="codesign"), hw=HARDWARE)
    states = {state: replace(one, case=replace(one.case, cache=state)) for state in ("hot", "rotating", "cold")}
    times = {"hot": 2e-6, "rotating": 4e-6, "cold": 5e-6}
    large = replace(one, key="large", samples_s=(), summary=None,
                    verdict=Verdict(Kind.INVALID, (Reason("oom", "out of memory: 3 bytes were wanted"),)))  # fmt: skip
    return {
        "repeat_1": [replace(gemm_row(1e-5, scheme="W4A16-g128", library="codesign"), hw=HARDWARE)],
        "repeat_2": [other], "joules_1": [with_energy(one, 0.010)], "joules_2": [with_energy(one, 0.0101)],
        "memory": [large, one],
        **{f"cache_{name}": [replace(row, summary=summarize((times[name],) * 31))] for name, row in states.items()},
    }  # fmt: skip


@pytest.mark.parametrize(("second_s", "repeated", "code"), [(1.02e-5, "passed", 0), (1.05e-5, "FAILED", 1)])
def test_the_checks_tell_what_can_be_trusted(stand_in, tmp_path, second_s, repeated, code):
    data = write_lane(tmp_path / "recorded", **rows_of_checks(second_s))
    shutil.copytree(data, tmp_path / "out")
    checks = LANE.with_name("gpu_checks.py")
    done = subprocess.run(
        [sys.executable, str(checks), str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert told["A12 runs repeat"].startswith(repeated)
    assert {told[name].split(",")[0] for name in told if name != "A12 runs repeat"} == {"passed"}
    lane = run_lane(stand_in, data, "--checks", str(tmp_path / "again"), SECONDS_TOTAL="900")
    assert "A56 memory runs out: passed" in lane.stdout, lane.stdout


def test_without_a_gpu_it_says_so_at_once(tmp_path):
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\nexit 1\n")
    nothing.chmod(0o755)
    done = run_lane(nothing, tmp_path, str(tmp_path / "out"))
    assert done.returncode == 5
    assert "no PyTorch for CUDA" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_second_part_is_load_and_joules(stand_in, tmp_path):
    text = LANE.read_text()
    assert "--soak 300" in text
    done = run_lane(stand_in, recorded(tmp_path / "recorded"), "--soak", str(tmp_path / "out"), SECONDS_TOTAL="900")
    assert "soak failed, code 6" in done.stdout  # the recording has none
    assert (tmp_path / "out" / "README.md").is_file()
