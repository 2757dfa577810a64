"""A checkpoint's own schemes as an assignment."""

import pytest

from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.cost.as_is import as_is_assignment
from codesign.cost.deployment import deploy, uniform_assignment
from codesign.cost.inference import predict_inference
from codesign.cost.memory import total_weight_bytes
from codesign.errors import CapabilityError, InputError
from codesign.hardware.file import load_hardware
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting
from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import llama, write_folder

W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
CONFIG = {
    "quant_method": "compressed-tensors", "ignore": ["lm_head"],
    "config_groups": {"a": {"targets": ["Linear"], "weights": W4}},
}  # fmt: skip
SETTING = Setting(prompt_tokens=64, output_tokens=32)


def where_of(checkpoint, name="a100-sxm-80gb", library="vllm"):
    return deploy(load_hardware(name), checkpoint.model, Setting(prompt_tokens=64, output_tokens=32, library=library))


def test_one_scheme_everywhere_is_the_uniform_assignment(tmp_path):
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(tiny.packed()), CONFIG)))
    where = where_of(checkpoint)
    found = as_is_assignment(where, checkpoint)
    assert found.assignment == uniform_assignment(where, parse_scheme("W4A16-g128"))
    assert found.warnings == ()
    weights = total_weight_bytes(
        checkpoint.model, found.assignment.groups, found.assignment.schemes, found.assignment.embedding
    )
    assert weights == pytest.approx(checkpoint.tensor_bytes, rel=0.001)
    assert predict_inference(where, found.assignment).memory.weight_bytes == pytest.approx(weights)


def test_the_cache_format_is_the_checkpoints_unless_named(tmp_path):
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    folder = write_folder(tmp_path, llama(tiny.packed()), {**CONFIG, "kv_cache_scheme": cache})
    checkpoint = read_checkpoint(str(folder))
    where = where_of(checkpoint, "h100-sxm")
    assert as_is_assignment(where, checkpoint).assignment.kv.name == "fp8"
    assert as_is_assignment(where, checkpoint, "bf16").assignment.kv.name == "bf16"
    odd = {**CONFIG, "kv_cache_scheme": {**cache, "strategy": "attn_head"}}
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(tiny.packed()), odd)))
    found = as_is_assignment(where, checkpoint)
    assert found.assignment.kv.name == "bf16"
    assert "fp8 per attn_head" in found.warnings[0]


def test_a_torn_group_is_refused_by_name(tmp_path):
    tensors = llama(tiny.packed(), v_proj=tiny.bf16)
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors, {**CONFIG, "ignore": ["re:.*v_proj", "lm_head"]})))
    with pytest.raises(CapabilityError, match=r"0\.qkv is torn apart.*v_proj in BF16"):
        as_is_assignment(where_of(checkpoint), checkpoint)


def test_what_the_catalog_lacks_is_not_guessed(tmp_path):
    checkpoint = read_checkpoint(
        str(write_folder(tmp_path, llama(tiny.torchao), {"quant_method": "torchao", "quant_type": {}}))
    )
    with pytest.raises(InputError, match=r"0\.qkv is stored as torchao I8"):
        as_is_assignment(where_of(checkpoint), checkpoint)


def test_a_layer_without_a_tensor_is_named(tmp_path):
    tensors = llama(tiny.bf16)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors)))
    with pytest.raises(InputError, match=r"model.layers.1.mlp.down_proj"):
        as_is_assignment(where_of(checkpoint), checkpoint)


def test_a_machine_that_lacks_the_scheme_says_so(tmp_path):
    quantization = {"quant_method": "fp8", "activation_scheme": "static"}
    checkpoint = read_checkpoint(
        str(write_folder(tmp_path, llama(tiny.fp8(lambda n, k: (), inputs=True)), quantization))
    )
    with pytest.raises(CapabilityError):
        as_is_assignment(where_of(checkpoint, "x86-avx512", "llama.cpp"), checkpoint)
