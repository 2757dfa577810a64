"""`codesign qat` end to end on a tiny model."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from codesign.cli.main import main
from codesign.model.file import load_model
from codesign.plan.file import write_plan
from tests.tiny_tokenizer import CHARACTERS, save_tokenizer
from tests.tiny_transformer import plan_of, save_tiny

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training runs models with transformers")

TEXT = "the quick brown fox jumps over the lazy dog. 0123456789; " * 60
WORK = ("--steps", "12", "--window", "32", "--batch", "2", "--lr", "1e-3", "--step-lr", "1e-2")


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def codesign(capsys):
    """Return a function that runs the command line in this process: torch is slow to import."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        return Done(int(end.value.code), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    assert len(CHARACTERS) < 96
    return str(save_tokenizer(save_tiny(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT)
    return str(path)


def test_what_is_written_is_read_back_as_it_was_trained(codesign, model, text, tmp_path):
    from codesign.quantize.network import Network
    from codesign.quantize.source import open_source

    out = tmp_path / "out"
    done = codesign("qat", "--model", model, "--scheme", "W4A16-g32", "--text", text, *WORK, "-o", str(out))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "14 layers, 12 steps of 2 x 32 tokens" in lines[0]
    assert "of memory" in lines[0]
    assert "Step 12 of 12: loss" in done.stdout
    assert "left" in done.stdout
    assert not list(tmp_path.glob("out.partial*"))
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    ids = torch.arange(64).reshape(2, 32)
    found = []
    for folder in (model, str(out)):
        with Network(open_source(folder)).whole() as transformer, torch.no_grad():
            found.append(transformer(input_ids=ids, use_cache=False).logits)
    assert 0 < float((found[0] - found[1]).std()) < 0.5 * float(found[0].std())


def test_a_plan_and_gptq_to_start_from(codesign, model, text, tmp_path):
    plan = tmp_path / "plan.json"
    write_plan(plan_of(load_model(model), "W3A16-g32", except_groups=("o", "head")), plan)
    asked = ("qat", "--model", model, "--plan", str(plan), "--text", text, *WORK, "--start-from", "gptq")
    done = codesign(*asked, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "12 layers" in done.stdout
    again = codesign(*asked, "-o", str(tmp_path / "out"))
    assert again.returncode == 3
    assert "exists already" in again.stderr


def test_a_run_that_was_stopped_goes_on(codesign, model, text, tmp_path):
    from codesign.quantize.qat import QatOptions, QatTask, qat_settings, train
    from codesign.quantize.result import ResultFolder
    from codesign.quantize.source import open_source
    from codesign.quantize.text import read_tokens, windows
    from codesign.schemes.catalog import parse_scheme

    source = open_source(model)
    ids = read_tokens(Path(text), source.tokenizer(), 96, 12 * 2 * 32)
    schemes = {layer.name: parse_scheme("W4A16-g32") for block in source.model.blocks for layer in block.layers}
    task = QatTask(source, schemes, windows(ids, 32))
    options = QatOptions(12, learning_rate=1e-3, step_learning_rate=1e-2, batch=2, save_every=4)
    settings = {**qat_settings(task, options), "start": "rtn", "kv": ""}
    for report in train(task, options, ResultFolder(tmp_path / "out.partial", settings)):
        if report.step == 9:
            break
    asked = ("qat", "--model", model, "--scheme", "W4A16-g32", "--text", text, *WORK)
    for folder in ("out", "whole"):
        done = codesign(*asked, "-o", str(tmp_path / folder))
        assert done.returncode == 0, done.stderr
        assert ("Going on behind step 8" in done.stdout) == (folder == "out")
    first, second = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "whole"))
    assert first == second


WRONG = [
    ((), 2, "Give --plan or --scheme"),
    (("--scheme", "NVFP4-A16"), 3, "use --method ste"),
    (("--scheme", "Q4_0"), 3, "value by value"),
    (("--scheme", "W4A16-g32-asym", "--start-from", "lsq"), 3, "starts from rtn or gptq"),
    (("--scheme", "W4A16-g32", "--batch", "5000"), 3, "needs as many windows"),
    (("--scheme", "W4A16-g32", "--window", "2048"), 3, "longer than the 128"),
    (("--scheme", "W4A16-g32", "--lr", "0"), 2, "--lr"),
    (("--scheme", "W4A16-g32", "--format", "awk"), 3, "awq"),
    (("--scheme", "W4A16-g32", "--method", "lsd"), 2, "lsq"),
]


@pytest.mark.parametrize(("more", "code", "sentence"), WRONG, ids=[str(row[0][1:]) for row in WRONG])
def test_what_is_wrong_is_said_and_nothing_is_left(codesign, model, text, tmp_path, more, code, sentence):
    done = codesign("qat", "--model", model, "--text", text, *WORK, "-o", str(tmp_path / "out"), *more)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert sentence in " ".join(done.stderr.replace("│", "").split())
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_model_is_refused(codesign, model, text, tmp_path):
    plan = tmp_path / "plan.json"
    write_plan(replace(plan_of(load_model(model), "W4A16-g32"), model_digest="0" * 64), plan)
    done = codesign("qat", "--model", model, "--plan", str(plan), "--text", text, *WORK, "-o", str(tmp_path / "out"))
    assert (done.returncode, "plan again" in done.stderr) == (3, True)


def test_text_that_is_too_short_or_missing(codesign, model, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("few words")
    for text, sentence in ((short, "too short"), (tmp_path / "none.txt", "cannot read")):
        asked = ("--scheme", "W4A16-g32", "--text", str(text), "-o", str(tmp_path / "out"))
        done = codesign("qat", "--model", model, *WORK, *asked)
        assert (done.returncode, sentence in done.stderr) == (3, True), done.stderr
