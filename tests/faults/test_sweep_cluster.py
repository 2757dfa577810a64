"""A sweep on a real ray cluster of two nodes on this machine, one of which is killed; see ray_sweep_program."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="clusters work through ray"),
]
ROOT = Path(__file__).parents[2]
GRID = """
hardware: [h100, a100, l40s]
model: [llama-3.1-8b, llama-2-7b]
scheme: [BF16, FP8, W4A16-g128, W8A8]
gpus: [1, 2]
batch: [1, 2, 4, 8, 16, 32, 64, 128]
prompt: [128, 256, 512, 1024, 2048]
output: [16, 64, 256, 512, 1024]
"""


def test_both_engines_give_the_same_file_though_a_node_is_killed(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "ray_sweep_program.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed 1" in done.stdout
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
