"""scripts/gpu_lane from end to end with a Python that says it has a GPU: its measurements are recorded runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_runs import attention_row, kernel_rows, with_energy, write_lane

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


def recorded(folder: Path, **changes: float) -> Path:
    four = kernel_rows("codesign", "w4a16_gemm", "W4A16-g128", changes.get("share", 0.95), 0.35)
    plain = kernel_rows("torch", "linear", "FP16", 0.85, 0.9)
    return write_lane(
        folder, gemm=[*four, *plain], attention=[attention_row("fp16", 0.9), attention_row("int8", 0.7)],
        energy=[with_energy(plain[10], 0.03)],
    )  # fmt: skip


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
