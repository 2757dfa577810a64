"""`codesign profile --blocks` and `--generate` from end to end, on models of a few thousand weights."""

import json
import subprocess
from pathlib import Path

import pytest

from codesign.model.file import load_model
from codesign.plan.file import write_plan
from codesign.profiler.export import read_measurements
from codesign.profiler.run_folder import read_run
from tests import command_line
from tests.command_line import small_memory_probe
from tests.tiny_transformer import plan_of, save_tiny

pytest.importorskip("torch")
COMMON = ("--hw", "epyc-9654", "--threads", "1", "--budget-s", "0.2")


@pytest.fixture(autouse=True, scope="module")
def small_probe():
    with small_memory_probe():
        yield


def codesign(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_line.codesign(*arguments, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a tiny model in `model`."""
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("steps")
    save_tiny(place / "model")
    return place


@pytest.fixture(scope="module")
def measured(folder) -> tuple[Path, str]:
    """Return a run of blocks and what it printed."""
    done = codesign(folder, "profile", *COMMON, "--model", "model", "--blocks", "2", "--batch", "1,2", "--context",
                    "16", "--prompt", "4", "--schemes", "BF16", "--libraries", "torch", "-o", "blocks")  # fmt: skip
    assert done.returncode in (0, 6), done.stderr  # 6: on a busy machine no row is valid
    return folder / "blocks", done.stdout


def test_blocks_are_measured_checked_and_predicted(measured):
    path, printed = measured
    for words in ("2 blocks of", "decode x 2, 16 tokens, bf16 KV", "prefill x 1, 4 tokens", "linear+sdpa"):
        assert words in printed
    run = read_run(path)
    cases = {(one.case.phase, one.case.batch, one.case.context_tokens) for one in run.measurements}
    assert cases == {("decode", 1, 16), ("decode", 2, 16), ("prefill", 1, 4), ("prefill", 2, 4)}
    for one in run.measurements:
        assert one.check.passed
        assert one.procedure.notes["predicted_s"] > 0
        assert one.summary.sample_count > 0
    assert "--blocks 2" in run.head.command


def test_steps_are_not_fitted(measured):
    with pytest.raises(Exception, match=r"a step of several kernels|the verdict is"):
        read_measurements(str(measured[0]))


def test_a_dry_run_of_blocks_measures_nothing(folder):
    done = codesign(folder, "profile", *COMMON, "--model", "llama-2-7b", "--blocks", "2", "--batch", "1",
                    "--schemes", "BF16,W8A8", "--libraries", "torch", "--dry-run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    cases = [one["case"] for one in json.loads(done.stdout)["cases"]]
    assert cases
    assert all("2 blocks of llama-2-7b, decode x 1, 1024 tokens, bf16 KV" in one for one in cases)


@pytest.mark.parametrize("planned", [False, True])
def test_a_model_generates_with_and_without_a_plan(folder, planned):
    arguments = ["profile", *COMMON, "--model", "model", "--generate", "--prompt", "8", "--new-tokens", "4"]
    if planned:
        write_plan(plan_of(load_model(str(folder / "model")), "W8A16"), folder / "plan.json")
        arguments += ["--plan", "plan.json", "--libraries", "torch"]
    name = f"generate{int(planned)}"
    done = codesign(folder, *arguments, "-o", name)
    assert done.returncode == 0, done.stderr
    for words in ("First token after", "was predicted", "tokens per second", "Peak memory:", "Logits differ from"):
        assert words in " ".join(done.stdout.split())
    run = read_run(folder / name)
    assert [one.case.figure for one in run.measurements] == ["ttft_s", "tpot_s"]
    assert {one.case.scheme for one in run.measurements} == {"W8A16" if planned else "BF16"}
    assert {one.kernel for one in run.measurements} == {"int8pack" if planned else "linear"}
    assert str(folder) not in run.head.command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--blocks", "2"), "--model NAME or --shapes NxK is missing"),
        (("--model", "mixtral-8x7b", "--blocks", "1", "-o", "r"), "one MLP"),
        (("--model", "nowhere", "--generate", "-o", "r"), "must be a folder or GGUF file"),
        (("--model", "model", "--generate"), "-o RUN is missing"),
        (("--model", "model", "--generate", "-o", "r", "--prompt", "8,16"), "one length of --prompt"),
    ],
)
def test_wrong_questions_get_sentences(folder, arguments, words):
    done = codesign(folder, "profile", *COMMON, *arguments)
    assert done.returncode not in (0, 1)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
