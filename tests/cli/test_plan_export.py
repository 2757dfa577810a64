"""`codesign plan export` end to end."""

import json
import subprocess
import sys

import pytest

WORK = ("--prompt", "512", "--output", "128", "--batch", "4")


def codesign(*arguments, cwd=None):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "codesign", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    done = codesign("plan", "--hw", "a100", "--model", "llama-3.1-8b", *WORK, "--out", str(path))
    assert done.returncode == 0, done.stderr
    return str(path)


def test_to_standard_output(plan_file):
    done = codesign("plan", "export", plan_file, "--to", "vllm")
    assert (done.returncode, done.stderr) == (0, "")
    assert "vllm serve" in done.stdout
    assert "--max-model-len 640" in done.stdout


def test_to_a_file_that_is_replaced_only_by_force(plan_file, tmp_path):
    out = tmp_path / "recipe.yaml"
    asked = ("plan", "export", plan_file, "--to", "llm-compressor", "-o", str(out))
    assert codesign(*asked).returncode == 0
    first = out.read_text()
    assert first.startswith("# llama-3.1-8b for a100")
    out.write_text("mine")
    again = codesign(*asked)
    assert again.returncode == 3
    assert "use --force" in again.stderr
    assert out.read_text() == "mine"
    assert codesign(*asked, "--force").returncode == 0
    assert out.read_text() == first
    assert list(tmp_path.iterdir()) == [out]


def test_a_refusal_writes_nothing_and_promotion_tells_its_cost(plan_file, tmp_path):
    out = tmp_path / "recipe.sh"
    asked = ("plan", "export", plan_file, "--to", "llama.cpp", "-o", str(out))
    refused = codesign(*asked)
    assert refused.returncode == 3
    assert "--promote takes the next wider scheme" in refused.stderr
    assert not out.exists()
    done = codesign(*asked, "--promote")
    assert done.returncode == 0
    assert "That takes the weights from" in done.stderr
    assert "llama-quantize" in out.read_text()


@pytest.mark.parametrize("tool", ["gptqmodel", "torchao"])
def test_json_recipes_are_json(plan_file, tool):
    done = codesign("plan", "export", plan_file, "--to", tool, "--promote")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_wrong_input(plan_file, tmp_path):
    for arguments, code, words in (
        (("--to", "ollama"), 3, "is no tool to export to"),
        ((), 2, "--to"),
        (("--to", "vllm", "-o", str(tmp_path)), 3, "this is a folder"),
        (("--to", "vllm", "--model", "no-such-model"), 3, "No model is called"),
    ):
        done = codesign("plan", "export", plan_file, *arguments)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    missing = codesign("plan", "export", str(tmp_path / "none.json"), "--to", "vllm")
    assert missing.returncode == 3


def test_a_plan_of_a_folder_takes_its_path(tmp_path):
    config = {"model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4,
              "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000,
              "max_position_embeddings": 4096}  # fmt: skip
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    plan = str(tmp_path / "plan.json")
    asked = ("plan", "--hw", "a100", "--model", str(folder), *WORK, "--out", plan, "--allow-unknown-quality")
    assert codesign(*asked).returncode == 0
    lost = codesign("plan", "export", plan, "--to", "autoround", cwd=tmp_path.parent)
    assert lost.returncode == 3
    assert "--model" in lost.stderr
    done = codesign("plan", "export", plan, "--to", "autoround", "--model", str(folder), "--promote")
    assert done.returncode == 0, done.stderr
    assert f"--model {folder}" in done.stdout


def test_runtime_says_what_runs_and_of_which_sizes():
    done = codesign("scheme", "list", "--hw", "t4", "--runtime", "vllm", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["schemes"]}
    assert (rows["W4A16-g128"]["n_multiple"], rows["W4A16-g128"]["k_multiple"]) == (64, 128)
    assert rows["W4A16-g128"]["level"] == "native"
    assert rows["Q4_K"]["k_multiple"] == 256
    assert "codesign scheme list" in codesign("scheme", "list", "--help").stdout
