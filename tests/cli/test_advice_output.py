"""Signed advice, engine class and threads in the commands, as a user meets them."""

import contextlib
import io
import json
from dataclasses import dataclass

import pytest

from codesign.cli.main import main
from codesign.cost.advice_text import AdviceKind
from codesign.cost.engine import ENGINE_CLASSES

HERE = ("--hw", "h100", "--library", "vllm", "--model", "llama-3.1-8b")
COMMANDS = ("plan", "predict", "compare")


@dataclass(frozen=True)
class Done:
    """What a command printed, and how it ended."""

    exit_code: object
    stdout: str
    stderr: str


def run(*arguments: str) -> Done:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return Done(ended.value.code or 0, out.getvalue(), err.getvalue())


def words(*arguments: str) -> str:
    """Return the output of a command as one line."""
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    return " ".join(done.stdout.split())


def check_advice(advice: list[dict[str, object]]) -> None:
    for one in advice:
        assert one["kind"] in list(AdviceKind)
        assert str(one["sentence"]).endswith(").")
        numbers = one["numbers"]
        assert isinstance(numbers, dict)
        assert numbers
        assert all(x["low"] <= x["value"] <= x["high"] and x["origin"] for x in numbers.values())


def test_predict_says_that_fp8_cache_hurts_and_from_where_it_pays():
    text = words("predict", *HERE, "--kv", "fp8", "--prompt", "512", "--output", "1")
    assert "KV fp8: probably slower at batch 1 and context 513: attention of decode" in text
    assert "; pays above" in text
    assert "(calibrated)" in text


def test_predict_tells_at_each_batch_what_is_new():
    many = json.loads(run("predict", *HERE, "--scheme", "W4A16-g128", "--batch", "1,16,256", "--json").stdout)
    for row in many["predictions"]:
        assert row["advice"]
        check_advice(row["advice"])
    text = words("predict", *HERE, "--scheme", "W4A16-g128", "--batch", "1,2,4")
    assert text.count("4.00x by bits alone") == 1


def test_the_sign_of_experts_in_fp8():
    text = words(
        "predict", "--hw", "h100", "--gpus", "2", "--model", "mixtral-8x7b", "--scheme", "FP8", "--batch", "16"
    )
    assert "FP8: only smaller, not faster, at batch 16" in text


def test_compare_names_the_machine_of_each_advice():
    done = json.loads(run("compare", "--hw", "h100,a100", "--model", "llama-3.1-8b", "--batch", "64", "--json").stdout)
    for machine in done["machines"]:
        assert machine["advice"]
        check_advice(machine["advice"])
    text = words("compare", "--hw", "h100,a100", "--model", "llama-3.1-8b", "--batch", "64")
    assert "- h100-sxm: Stops paying at batch 64" in text
    assert "- a100-sxm-80gb: Stops paying at batch 64" in text


def test_a_plan_keeps_its_advice_in_the_file_and_shows_it_on_the_page(tmp_path):
    out, page = tmp_path / "plan.json", tmp_path / "plan.html"
    done = run("plan", *HERE, "--engine", "eager", "--max-memory-gib", "10", "--out", str(out), "--html", str(page))
    assert done.exit_code == 0, done.stderr
    check_advice(json.loads(out.read_text())["advice"])
    assert "eager engine" in done.stdout.splitlines()[0]
    assert "Host-bound at batch 1" in done.stdout
    assert "waiting for the host" in done.stdout
    assert run("plan", "show", str(out)).stdout == done.stdout
    assert '<ul class="advice">\n<li>Host-bound at batch 1' in page.read_text()


def test_a_plan_written_before_there_was_advice_is_still_read(tmp_path):
    out = tmp_path / "plan.json"
    assert run("plan", *HERE, "--out", str(out)).exit_code == 0
    old = json.loads(out.read_text())
    for key in ("advice", "engine", "thread_count", "kernel_sheets"):
        del old[key]
    out.write_text(json.dumps(old))
    assert "probably" not in words("plan", "show", str(out))


def test_a_host_bound_plan_stays_in_16_bits():
    assert "Run BF16 100 % of the weights" in words("plan", *HERE, "--engine", "transformers")
    assert "Run BF16 100 % of the weights" not in words("plan", *HERE, "--engine", "vllm")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_host_is_named_under_a_python_loop_only(command):
    assert "no scheme is faster" in words(command, *HERE, "--engine", "eager")
    assert "Host-bound" not in words(command, *HERE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_lists_the_engine_classes(command):
    text = words(command, "--help").replace("- ", "-")
    for name in ENGINE_CLASSES:
        assert f"{name} (" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_fewer_threads_make_the_prompt_slower(command):
    def first_token_s(*options: str) -> float:
        done = run(command, "--hw", "ryzen-7950x", "--model", "llama-3.1-8b", *options, "--json")
        assert done.exit_code == 0, done.stderr
        value = json.loads(done.stdout)
        if command == "plan":
            return value["baseline"]["ttft_s"]["value"]
        if command == "predict":
            return value["predictions"][0]["baseline"]["ttft_s"]["value"]
        return next(x for x in value["machines"][0]["results"] if x["scheme"] == "BF16")["prediction"]["ttft_s"][
            "value"
        ]

    assert first_token_s("--threads", "4") > 2 * first_token_s()
    assert "4 threads" in words(command, "--hw", "ryzen-7950x", "--model", "llama-3.1-8b", "--threads", "4")


@pytest.mark.parametrize(
    ("options", "code", "words_of_it"),
    [
        (("--engine", "egaer"), 3, 'Did you mean "eager"?'),
        (("--threads", "0"), 2, "--threads"),
        (("--threads", "8"), 5, "NVIDIA H100 SXM5 80 GB is no CPU"),
    ],
)
def test_a_wrong_engine_or_count_of_threads_is_a_sentence(options, code, words_of_it):
    done = run("predict", *HERE, *options)
    assert done.exit_code == code
    assert words_of_it in done.stderr


def test_threads_in_a_comparison_are_those_of_its_cpus():
    text = words("compare", "--hw", "t4,ryzen-7950x", "--model", "llama-2-7b", "--threads", "4")
    assert ", 4 threads" in text
    assert "t4 (vllm)" in text
