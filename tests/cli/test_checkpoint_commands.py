"""Checkpoints through the commands: what is printed, and with which sentence and code broken ones are refused."""

import json

import pytest

from tests import tiny_checkpoints as tiny
from tests.cli.test_commands import strict_json
from tests.command_line import codesign
from tests.tiny_checkpoints import GGUF_KEYS, gguf_llama, llama, write_folder, write_gguf

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}


@pytest.fixture
def quantized(tmp_path):
    return write_folder(tmp_path / "tiny", llama(tiny.gptq()), GPTQ)


def test_show_prints_schemes_and_counts(quantized):
    done = codesign("model", "show", str(quantized))
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("W4A16-g128", "bits per weight", "Quantized by: gptq", "tensors of no layer"):
        assert words in " ".join(done.stdout.split())
    record = strict_json(codesign("model", "show", str(quantized), "--json").stdout)["checkpoint"]
    assert record["file_bytes"] == (quantized / "model.safetensors").stat().st_size
    assert record["tensor_bytes"] == sum(record["bytes_by_scheme"].values()) + record["other_bytes"]
    assert {layer["stored"] for layer in record["layers"]} == {"BF16", "W4A16-g128"}


def test_a_file_of_weights_stands_for_its_folder(quantized):
    by_folder = codesign("model", "show", str(quantized), "--json").stdout
    assert codesign("model", "show", str(quantized / "model.safetensors"), "--json").stdout == by_folder


def test_predict_compare_and_plan_take_the_path(quantized, tmp_path):
    common = ("--hw", "a100", "--model", str(quantized))
    for command in ("predict", "compare"):
        done = codesign(command, *common, "--scheme", "as-is", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        strict_json(done.stdout)
        assert codesign(command, *common, "--scheme", "as-is").returncode == 0
    assert codesign("plan", *common, "--max-quality-loss", "1").returncode == 0
    path = write_gguf(tmp_path / "m.gguf", "llama", GGUF_KEYS, gguf_llama())
    done = codesign("predict", "--hw", "x86-avx512", "--model", str(path), "--scheme", "as-is")
    assert (done.returncode, done.stderr) == (0, "")
    assert codesign("plan", "--hw", "x86-avx512", "--model", str(path)).returncode == 0


def test_plan_states_or_warns_of_what_is_stored(quantized, tmp_path):
    common = ("--hw", "a100", "--model", str(quantized))
    chosen = codesign("plan", *common, "--json", "--max-quality-loss", "1")
    assert "quantized already (W4A16-g128)" in strict_json(chosen.stdout)["warnings"][-1]
    plan = tmp_path / "plan.json"
    done = codesign("plan", *common, "--scheme", "as-is", "--out", str(plan))
    assert (done.returncode, done.stderr) == (0, "")
    assert codesign("plan", "show", str(plan)).stdout == done.stdout
    exported = codesign("plan", "export", str(plan), "--to", "vllm", "--model", str(quantized))
    assert f"vllm serve {quantized}" in exported.stdout
    for option in (("--max-memory-gib", "3"), ("--schemes", "W8A8"), ("--objective", "memory")):
        refusal = codesign("plan", *common, "--scheme", "as-is", *option)
        assert refusal.returncode == 2
        assert option[0] in refusal.stderr
    plain = write_folder(tmp_path / "plain", llama(tiny.bf16))
    (plain / "model.safetensors").write_bytes(b"version https://git-lfs")
    assert "quantized already" not in codesign("plan", "--hw", "a100", "--model", str(plain)).stdout


def test_compare_gives_the_warnings_of_predict(quantized):
    tensors = {**llama(tiny.gptq()), "vision.weight": ("BF16", (512, 512))}
    (quantized / "model.safetensors").write_bytes(tiny.tensor_file(tensors))
    common = ("--model", str(quantized), "--scheme", "as-is")
    predicted, compared = (
        codesign("predict", "--hw", "a100", *common),
        codesign("compare", "--hw", "a100,h100", *common),
    )
    assert (predicted.returncode, compared.returncode) == (0, 0)
    assert "belong to no layer (vision.weight)" in predicted.stderr
    assert compared.stderr == predicted.stderr


def refused(*arguments, words):
    done = codesign(*arguments)
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in " ".join(done.stderr.split())


def test_an_unknown_tensor_type_is_listed_by_number_and_refused_by_predict(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", GGUF_KEYS, gguf_llama(up_type="type 77"))
    done = codesign("model", "show", str(path))
    assert done.returncode == 0
    assert "type 77" in done.stdout
    for scheme in ((), ("--scheme", "as-is"), ("--scheme", "Q4_K")):
        refused("predict", "--hw", "x86-avx512", "--model", str(path), *scheme, words=("type 77",))


def test_a_missing_and_a_wrong_shard_are_both_named(tmp_path):
    folder = write_folder(tmp_path, llama(tiny.bf16))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}))
    refused("model", "show", str(folder), words=("index.json", "model-00002-of-00002.safetensors"))
    other = tiny.tensor_file({"x.weight": ("BF16", (2, 2))})
    (folder / "model-00002-of-00002.safetensors").write_bytes(other)
    index.write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors",
                                   "model.norm.weight": "model-00001-of-00002.safetensors"}})
    )  # fmt: skip
    words = ("lm_head.weight", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors")
    refused("model", "show", str(folder), words=words)
    refused("predict", "--hw", "a100", "--model", str(folder), "--scheme", "as-is", words=words)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "renamed.safetensors", "renamed.gguf"])
def test_pickles_are_refused_wherever_they_are_named(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.LLAMA))
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04" + bytes(64))
    refused("model", "show", str(path), words=("pickle",))
    if name != "renamed.gguf":
        refused("model", "show", str(tmp_path), words=("pickle",))
        refused("predict", "--hw", "a100", "--model", str(tmp_path), "--scheme", "as-is", words=("pickle",))


def test_an_unknown_architecture_is_refused_and_foreign_code_only_warned_of(tmp_path):
    folder = write_folder(tmp_path / "a", llama(tiny.bf16), None, {"model_type": "lama"})
    refused("model", "show", str(folder), words=("lama", "Nearest are llama"))
    folder = write_folder(tmp_path / "b", llama(tiny.bf16), None, {"auto_map": {"AutoModel": "x.Y"}})
    done = codesign("model", "show", str(folder))
    assert done.returncode == 0
    assert done.stderr.count("auto_map") == 1
