"""A real ray cluster of two nodes on this machine, one of which is killed while it works; see ray_program."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="quantizing needs torch")
pytest.importorskip("transformers", reason="blocks are run by transformers")
pytest.importorskip("compressed_tensors", reason="the default format is that of compressed-tensors")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="clusters work through ray"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """Run the program without the hook that forbids sockets: its connections do not leave this machine."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "ray_program.py"), str(folder)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result


def test_a_killed_node_costs_the_pieces_it_worked_on(found):
    killed = found["killed"]
    assert killed["found"] == {f"piece {index}": index * index for index in range(6)}
    assert killed["begun"].count(killed["lost"]) == 2
    assert len(killed["begun"]) <= 6 + 2  # what the node worked on, and at most one whose result lay there


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_quantizing_ends_with_the_same_bytes_when_a_node_is_killed(found, method):
    cluster, here = found[method]
    assert len([name for name in here if name.endswith(".safetensors")]) == 3
    assert cluster == here


@pytest.mark.parametrize("tier", ["weights", "fisher", "kl"])
def test_sensitivity_is_the_same_when_a_node_is_killed(found, tier):
    cluster, here = found[tier]
    assert "LossEstimate" in here
    assert cluster == here


def test_damaged_weights_are_told_with_the_name_of_the_layer(found):
    kind, text = found["damaged"]
    assert kind == "InputError"
    assert "model.layers.1.mlp.up_proj" in text


def test_the_command_writes_the_same_with_processes_of_this_machine(found):
    cluster, here = found["command"]
    assert any(name.endswith(".safetensors") for name in here)
    assert cluster == here
