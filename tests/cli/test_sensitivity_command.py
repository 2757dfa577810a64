"""`codesign sensitivity` and the measured finish of `codesign plan`, on a tiny model with a tokenizer of its own."""

import json
import random
import subprocess
import sys

import pytest

from codesign.model.file import load_model
from codesign.quality.table import read_quality
from tests.tiny_transformer import save_tiny

torch = pytest.importorskip("torch", reason="the extra `quantize` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `quantize` is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra `quantize` is not installed")

WORDS = [f"w{number}" for number in range(95)]
SCHEMES = ["Q4_0", "Q8_0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a folder with the model and a tokenizer of one token a word."""
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    words = {word: number for number, word in enumerate([*WORDS, "?"])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="?").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text(" ".join(random.Random(0).choices(WORDS, k=6000)))
    return file


def run(capsys, *arguments):
    from codesign.cli.main import _run

    code = _run([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def measure(capsys, model, out, *more):
    given = ("--model", model, "--schemes", ",".join(SCHEMES), "--windows", 6, "--window", 24)
    return run(capsys, "sensitivity", *given, "-o", out, *more)


@pytest.mark.parametrize("tier", ["weights", "fisher", "kl"])
def test_every_tier_writes_a_table_that_belongs_to_the_model(capsys, model, text, tmp_path, tier):
    file = tmp_path / "quality.json"
    code, out, err = measure(capsys, model, file, "--text", text, "--tier", tier)
    assert code == 0, err
    table = read_quality(file, load_model(model))
    assert {name for _, name in table.cells} == set(SCHEMES)
    assert len(table.cells) == 9 * len(SCHEMES)
    assert "most sensitive" in out
    assert ("18 cells of 6 windows: about" in out) == (tier == "kl")
    assert list(tmp_path.iterdir()) == [file]
    assert "6 windows of 24 tokens of words.txt" in table.text


def test_the_model_can_write_the_text(capsys, model, tmp_path):
    code, _, err = measure(capsys, model, tmp_path / "q.json", "--self-generated", "--kv", "int8")
    assert code == 0, err
    table = json.loads((tmp_path / "q.json").read_text())
    assert "that the model wrote" in table["text"]
    assert next(row for row in table["kv"] if row["kv"] == "int8")["origin"] == "measured"


def test_wrong_input_is_a_sentence(capsys, model, text, tmp_path):
    out = tmp_path / "q.json"
    short = tmp_path / "short.txt"
    short.write_text("w1 w2 w3")
    for arguments, code, words in (
        (("--text", short), 3, "too short for 6 windows of 24"),
        ((), 3, "needs a text"),
        (("--text", text, "--self-generated"), 2, "not both"),
        (("--text", text, "--tier", "fischer"), 3, 'Did you mean "fisher"'),
        (("--text", tmp_path / "nowhere.txt"), 3, "cannot read this text"),
        (("--text", text, "--schemes", "BF16"), 3, "No quantized scheme"),
    ):
        found, _, err = measure(capsys, model, out, *arguments)
        assert (found, words in err) == (code, True), err
        assert not out.exists()


def test_a_file_is_not_replaced_without_force(capsys, model, tmp_path):
    file = tmp_path / "q.json"
    file.write_text("mine")
    assert measure(capsys, model, file, "--tier", "weights")[0] == 3
    assert file.read_text() == "mine"
    assert measure(capsys, model, file, "--tier", "weights", "--force")[0] == 0
    assert json.loads(file.read_text())["format_version"] == 1


KILLED = """
import os, sys
from codesign.cli.main import main
from codesign.quality.state import State
left, keep = [5], State.keep
def keep_some(state, values):
    keep(state, values)
    left[0] -= 1
    if left[0] == 0:
        os._exit(9)  # no cleaning up, as after a kill
State.keep = keep_some
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_file(capsys, model, text, tmp_path):
    file, whole = tmp_path / "q.json", tmp_path / "whole.json"
    given = ["--schemes", ",".join(SCHEMES), "--windows", "6", "--window", "24", "--text", text, "-o", file]
    command = [sys.executable, "-c", KILLED, "sensitivity", "--model", model, *given]
    assert subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 9
    assert not file.exists()
    assert (tmp_path / "q.json.state" / "values.json").exists()
    assert measure(capsys, model, file, "--text", text, "--tier", "kl")[0] == 3  # other settings are not mixed in
    assert measure(capsys, model, file, "--text", text)[0] == 0
    assert measure(capsys, model, whole, "--text", text)[0] == 0
    assert file.read_text() == whole.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.json", "whole.json"]


@pytest.fixture
def quality(capsys, model, text, tmp_path):
    file = tmp_path / "quality.json"
    assert measure(capsys, model, file, "--text", text)[0] == 0
    return file


def plan(capsys, model, quality, *more):
    given = ("--hw", "epyc-9654", "--model", model, "--quality", quality, "--schemes", ",".join(SCHEMES))
    given += ("--prompt", 16, "--output", 8)
    return run(capsys, "plan", *given, "--json", *more)


def test_a_plan_uses_the_table(capsys, model, quality):
    code, out, err = plan(capsys, model, quality, "--objective", "memory", "--max-quality-loss", 1)
    assert code == 0, err
    made = json.loads(out)
    cells = {(row["block_index"], row["group"], row["scheme"]): row for row in json.loads(quality.read_text())["cells"]}
    calibration = json.loads(quality.read_text())["calibration"]
    quantized = [group for group in made["groups"] if group["scheme"] in SCHEMES]
    assert quantized
    for group in quantized:
        cell = cells[group["block_index"], group["name"], group["scheme"]]
        assert group["loss_nats"]["value"] == pytest.approx(cell["loss_nats"] * calibration)
    assert made["measured"] == []


@pytest.mark.parametrize(
    "goal", [("--objective", "quality"), ("--objective", "tpot", "--max-quality-loss", "0.02"),
             ("--objective", "tpot", "--max-quality-loss", "0.005")],
)  # fmt: skip
def test_plans_near_the_best_are_measured_and_the_best_is_taken(capsys, model, text, quality, goal):
    code, out, err = plan(capsys, model, quality, *goal, "--text", text)
    assert code == 0, err
    made = json.loads(out)
    taken = [one for one in made["measured"] if one["taken"]]
    assert len(taken) == 1
    losses = [one["measured_loss_nats"]["value"] for one in made["measured"]]
    assert made["loss_nats"] == taken[0]["measured_loss_nats"]
    assert "words.txt" in made["measured_with"]
    limit = made["budgets"].get("quality")
    if limit is None:
        assert taken[0]["measured_loss_nats"]["value"] == min(losses)
    else:
        within = [one for one in made["measured"] if one["measured_loss_nats"]["value"] <= limit]
        assert taken[0] in within
        assert taken[0]["objective_value"] == min(one["objective_value"] for one in within)


def test_text_without_weights_is_refused(capsys, text):
    code, _, err = run(capsys, "plan", "--hw", "a100", "--model", "llama-7b", "--text", text)
    assert code == 2
    assert "none lie at llama-7b" in err
