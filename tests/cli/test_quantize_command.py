import json
from dataclasses import replace

import pytest

from codesign.cli.main import main
from codesign.model.file import load_model
from codesign.plan.file import write_plan
from tests.tiny_transformer import plan_of, save_tiny

torch = pytest.importorskip("torch", reason="quantizing needs torch")
pytest.importorskip("transformers", reason="blocks are run by transformers")
pytest.importorskip("compressed_tensors", reason="the default format is that of compressed-tensors")

SELF = ("--self-generated", "--windows", "4", "--window", "16")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny")))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["quantize", *arguments])
    return exit_.value.code or 0


@pytest.mark.parametrize(
    "options",
    [
        ("--scheme", "W4A16-g32"),
        ("--scheme", "W4A16-g64", "--method", "gptq", *SELF),
        ("--scheme", "W8A8", "--method", "smoothquant", *SELF),
        ("--scheme", "W4A16-g64", "--method", "awq", *SELF),
        ("--scheme", "W4A16-g32-asym", "--method", "hqq"),
    ],
    ids=lambda options: f"{options[3]}" if len(options) > 2 else "rtn",
)
def test_a_scheme_is_carried_out_and_written(model, tmp_path, capsys, options):
    from codesign.quantize.network import Network
    from codesign.quantize.source import open_source

    out = tmp_path / "out"
    assert run("--model", model, *options, "-o", str(out)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    printed = capsys.readouterr().out
    assert "model.layers.1:" in printed
    assert "14 layers" in printed
    exact, made = (logits(Network(open_source(path))) for path in (model, str(out)))
    # 64 tokens of random weights say less than the 64 channels that GPTQ fits: it must not be far off, not be best.
    assert 0 < (made - exact).norm() / exact.norm() < (0.6 if "gptq" in options else 0.4)


def logits(network):
    batch = network.start(torch.arange(48).reshape(2, 24))
    with torch.inference_mode():
        for index in range(network.block_count):
            with network.block(index) as block:
                batch = network.step(index, block, batch)
        return network.logits(batch)


def test_a_plan_is_carried_out_group_by_group(model, tmp_path):
    plan = plan_of(load_model(model), "W4A16-g32", except_groups=("down", "head"))
    write_plan(plan, tmp_path / "plan.json")
    out = tmp_path / "out"
    assert run("--model", model, "--plan", str(tmp_path / "plan.json"), "-o", str(out)) == 0
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["ignore"]
    assert any("down_proj" in name for name in config["ignore"])
    assert not any("up_proj" in name for name in config["ignore"])


def test_a_plan_for_another_model_is_refused(model, tmp_path, capsys):
    plan = replace(plan_of(load_model(model), "W4A16-g32"), model_digest="0" * 64, model="other-7b")
    write_plan(plan, tmp_path / "plan.json")
    assert run("--model", model, "--plan", str(tmp_path / "plan.json"), "-o", str(tmp_path / "out")) == 3
    assert "made for other-7b" in capsys.readouterr().err
    assert not (tmp_path / "out.partial").exists()


def test_groups_that_do_not_fit_are_refused_with_what_does_or_promoted(model, tmp_path, capsys):
    arguments = ("--model", model, "--scheme", "W4A16-g128", "-o", str(tmp_path / "out"))
    assert run(*arguments) == 3
    assert "k = 64 is not a multiple. The nearest that works there is W4A16-g64; --promote" in capsys.readouterr().err
    assert run(*arguments, "--promote") == 0
    error = capsys.readouterr().err
    assert "Promoted: 0.qkv to 1.qkv (2 groups) from W4A16-g128 to W4A16-g64" in error
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert {group["weights"]["group_size"] for group in groups.values()} == {64, 128}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "--plan or --scheme"),
        (("--scheme", "W4A16-g64", "--plan", "plan.json"), 2, "only one of them"),
        (("--scheme", "W4A16-g64", "--method", "gptq"), 3, "needs calibration text"),
        (("--scheme", "W4A16-g64", "--method", "gtpq"), 3, 'Did you mean "gptq"'),
        (("--scheme", "W4A16-g64", "--format", "awqq"), 3, 'Did you mean "awq"'),
        (("--scheme", "W4A16-g64", "--format", "gguf"), 3, "gguf does not hold W4A16-g64"),
        (("--scheme", "W3A16-g64", "--format", "awq"), 3, "0.qkv in W3A16-g64"),
        (("--scheme", "BF16"), 3, "nothing to quantize"),
        (("--scheme", "W4A16-g64", "--text", "x", "--self-generated"), 2, "not both"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(model, tmp_path, capsys, options, code, message):
    assert run("--model", model, *options, "-o", str(tmp_path / "out")) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_needs_force(model, tmp_path, capsys):
    arguments = ("--model", model, "--scheme", "W4A16-g64", "-o", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    assert run(*arguments) == 3
    assert "--force" in capsys.readouterr().err
    assert run(*arguments, "--force") == 0
    assert not (tmp_path / "out" / "old").exists()
