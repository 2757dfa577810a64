"""The commands of the README end to end, and what happens with wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import codesign, codesign_in_a_process

PLAN = ("plan", "--hw", "a100", "--model", "llama-7b")


def strict_json(text: str) -> dict[str, object]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in the output")

    value: dict[str, object] = json.loads(text, parse_constant=refuse)
    return value


def test_the_main_job(tmp_path):
    """The job works from another folder and names what to run."""
    done = codesign_in_a_process(*PLAN, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("Run W4A16-g128", "decode speed of BF16", "it fits", "time per output token", "datasheet", "refused",
                 "slower at batch", "bits alone", "proven optimal"):  # fmt: skip
        assert word in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


def test_plan_within_15_gib_on_a_t4(tmp_path):
    out = tmp_path / "plan.json"
    options = ("--max-memory-gib", "15", "--prompt", "512", "--output", "128", "--batch", "1", "--out", str(out))
    done = codesign("plan", "--hw", "t4", "--model", "llama-2-13b", *options)
    assert done.returncode == 0, done.stderr
    plan = strict_json(out.read_text())
    memory = plan["totals"]["memory"]
    assert sum(memory.values()) <= 15 * 2**30
    assert plan["baseline_fits"] is False
    shown = codesign("plan", "show", str(out))
    assert shown.returncode == 0
    assert shown.stdout == done.stdout


def test_plan_of_a_config_folder_writes_a_page(tmp_path):
    config = {"model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4,
              "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000,
              "max_position_embeddings": 4096}  # fmt: skip
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    page = tmp_path / "plan.html"
    options = ("--objective", "tpot", "--max-quality-loss", "0.2", "--kv", "auto", "--html", str(page))
    done = codesign("plan", "--hw", "h100", "--model", str(folder), *options)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "Content-Security-Policy" in text
    assert "<script src" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        (*PLAN, "--json"),
        (*PLAN, "--pareto", "tpot,quality", "--json"),
        ("predict", "--hw", "h100", "--gpus", "4", "--model", "llama-2-70b", "--scheme", "W4A16-g128",
         "--batch", "1,8,64", "--prompt", "2048", "--output", "256", "--json"),
        ("compare", "--hw", "t4,a100,h100,x86-avx512,arm-neon", "--model", "llama-2-7b", "--scheme", "all", "--json"),
        ("hw", "list", "--json"),
        ("hw", "show", "a100", "--json"),
        ("hw", "check", "a100", "--json"),
        ("model", "list", "--json"),
        ("model", "show", "llama-3.1-70b", "--json"),
        ("scheme", "list", "--json"),
        ("scheme", "list", "--hw", "t4", "--json"),
    ],
)  # fmt: skip
def test_json_is_one_strict_document_and_the_tables_print_too(arguments):
    done = codesign(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    strict_json(done.stdout)
    table = codesign(*arguments[:-1])
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [(), ("plan",), ("plan", "show"), ("predict",), ("predict", "kernels"), ("predict", "serving"), ("compare",),
     ("validate",),
     ("hw",), ("hw", "list"), ("hw", "show"), ("hw", "check"), ("hw", "new"), ("model",), ("model", "list"),
     ("model", "show"), ("scheme",), ("scheme", "list")],
)  # fmt: skip
def test_help_ends_with_an_example(arguments):
    done = codesign(*arguments, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Example: codesign" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("plna",), 2, 'Did you mean "plan"?'),
        (("plan", "--hwx", "a100"), 2, "--hw"),
        (("plan", "--hw", "a100"), 2, "--model is missing"),
        (("plan", "--hw", "a100", "--model", "llama-7b", "--batch", "0"), 2, "batch"),
        ((*PLAN, "--objective", "topt"), 3, 'Did you mean "tpot"?'),
        (("plan", "--hw", "h10", "--model", "llama-7b"), 3, "Did you mean"),
        (("plan", "--hw", "a100", "--model", "lama-7b"), 3, 'Did you mean "llama-7b"?'),
        ((*PLAN, "--schemes", "W4A61"), 3, "Did you mean"),
        ((*PLAN, "--library", "vlm"), 3, 'Did you mean "vllm"?'),
        ((*PLAN, "--kv", "fp9"), 3, "fp8"),
        ((*PLAN, "--out", "/nowhere/plan.json"), 3, "does not exist"),
        ((*PLAN, "--max-memory-gib", "1"), 4, "--max-memory-gib"),
        ((*PLAN, "--max-tpot-ms", "0.01"), 4, "the smallest possible is"),
        ((*PLAN, "--min-tokens-per-s", "1e9"), 4, "the most that is possible is"),
        ((*PLAN, "--max-usd-per-million-tokens", "0.000001"), 4, "--max-usd-per-million-tokens"),
        (("plan", "show", "absent.json"), 3, "cannot read this plan"),
        (("predict", "--hw", "a100", "--model", "llama-7b", "--batch", "1,x"), 2, "not a whole number"),
        (("predict", "--hw", "a100", "--model", "llama-7b", "--scheme", "W4A4"), 5, "does not run on a100-sxm-80gb"),
        (("predict", "--hw", "edge-tpu", "--model", "gpt2", "--batch", "2"), 5, "one sequence at a time"),
        (("hw", "shwo", "a100"), 2, "shwo"),
        (("hw", "show", "a1000"), 3, "codesign hw list"),
    ],
)
def test_wrong_input_is_a_sentence_and_an_exit_code(arguments, code, words, tmp_path):
    done = codesign(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_feasible_memory_is_feasible():
    refused = codesign(*PLAN, "--max-memory-gib", "1", "--max-quality-loss", "9")
    smallest = float(refused.stderr.split("the smallest possible is ")[1].split(". ")[0].split()[0].rstrip("."))
    accepted = codesign(*PLAN, "--max-memory-gib", str(smallest * 1.001), "--max-quality-loss", "9")
    assert accepted.returncode == 0


def test_a_closed_pipe_is_quiet():
    shell = f"{sys.executable} -m codesign hw list | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_a_full_device_is_an_error():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "codesign", "hw", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "writing the output failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_copied_profile_can_be_used(tmp_path):
    target = tmp_path / "mine.yaml"
    assert codesign("hw", "new", "--from", "a100-sxm-80gb", "-o", str(target)).returncode == 0
    assert codesign("hw", "new", "--from", "a100-sxm-80gb", "-o", str(target)).returncode == 3
    assert codesign("hw", "check", str(target)).returncode == 0
    done = codesign("plan", "--hw", str(target), "--model", "llama-7b")
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout.splitlines()[0]


def test_version():
    assert codesign("--version").stdout.startswith("codesign, version ")


def test_experts_are_divided_whole_over_devices():
    options = ("--hw", "h100", "--gpus", "8", "--model", "qwen3-235b-a22b", "--scheme", "FP8-block", "--json")
    shares = {
        parallel: strict_json(codesign("predict", *options, "--expert-parallel", parallel).stdout) for parallel in "18"
    }
    # 1,536 columns over 8 devices leave 192, which blocks of 128 do not divide: experts stay in 16 bits there.
    smallest = {
        name: min(one["weight_bytes"] for one in _found(share, "weight_bytes")) for name, share in shares.items()
    }
    assert smallest["8"] < 0.6 * smallest["1"]
    refused = codesign("predict", *options, "--expert-parallel", "3")
    assert refused.returncode == 5
    assert "--expert-parallel must divide --gpus" in refused.stderr


def _found(value: object, key: str) -> list[dict[str, float]]:
    """Return all objects in a JSON value that hold the key."""
    if isinstance(value, list):
        return [found for one in value for found in _found(one, key)]
    if not isinstance(value, dict):
        return []
    return ([value] if key in value else []) + [found for one in value.values() for found in _found(one, key)]
