"""A checkpoint's own schemes as an assignment."""

from dataclasses import replace

import pytest

from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.cost.as_is import as_is_assignment
from codesign.cost.deployment import deploy, uniform_assignment
from codesign.cost.inference import predict_inference
from codesign.cost.memory import total_weight_bytes
from codesign.errors import CapabilityError, InputError
from codesign.hardware.file import load_hardware
from codesign.model.safetensors_file import read_safetensors
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting
from tests import tiny_checkpoints as tiny
from tests.checkpoint_kinds import GPTQ, KINDS
from tests.tiny_checkpoints import LAYERS, llama, write_folder

W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
CONFIG = {
    "quant_method": "compressed-tensors", "ignore": ["lm_head"],
    "config_groups": {"a": {"targets": ["Linear"], "weights": W4}},
}  # fmt: skip
NO_SCHEME = ("LLM.int8 (int8 per channel, outliers in 16 bits)", "torchao I8")
# Where the schemes run that vLLM on an H100 does not have.
RUNS = {
    "W4A8-g128": ("arm-neon", "vllm"), "NVFP4": ("b200", "vllm"), "W4AFP8-g128-static": ("h100-sxm", "trtllm"),
    "W4A16-g128-asym16": ("h100-sxm", "torch"),
}  # fmt: skip


def where_of(checkpoint, name="a100-sxm-80gb", library="vllm"):
    return deploy(load_hardware(name), checkpoint.model, Setting(prompt_tokens=64, output_tokens=32, library=library))


def test_one_scheme_everywhere_is_the_uniform_assignment(tmp_path):
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(tiny.packed()), CONFIG)))
    where = where_of(checkpoint)
    found = as_is_assignment(where, checkpoint)
    assert replace(found.assignment, stored_bytes=None) == uniform_assignment(where, parse_scheme("W4A16-g128"))
    assert found.warnings == ()
    weights = total_weight_bytes(
        checkpoint.model, found.assignment.groups, found.assignment.schemes, found.assignment.embedding
    )
    assert weights == pytest.approx(checkpoint.tensor_bytes, rel=0.001)
    assert predict_inference(where, found.assignment).memory.weight_bytes == checkpoint.tensor_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_weights_are_the_bytes_of_the_headers(kind, tmp_path):
    maker, quantization, wanted = KINDS[kind]
    folder = write_folder(tmp_path, llama(maker), quantization)
    checkpoint = read_checkpoint(str(folder))
    name, library = RUNS.get(wanted, ("h100-sxm", "vllm"))
    where = where_of(checkpoint, name, library)
    if wanted in NO_SCHEME:
        with pytest.raises(InputError, match="no scheme here"):
            as_is_assignment(where, checkpoint)
        return
    predicted = predict_inference(where, as_is_assignment(where, checkpoint).assignment).memory.weight_bytes
    tensors = read_safetensors(folder / "model.safetensors").tensors
    assert predicted == pytest.approx(sum(tensor.byte_count for tensor in tensors), rel=0.001)


def test_orders_of_columns_are_predicted_too(tmp_path):
    ordered = read_checkpoint(str(write_folder(tmp_path / "a", llama(tiny.gptq()), GPTQ)))
    plain = read_checkpoint(str(write_folder(tmp_path / "b", llama(tiny.packed()), CONFIG)))
    memory = [
        predict_inference(where_of(one), as_is_assignment(where_of(one), one).assignment).memory.weight_bytes
        for one in (ordered, plain)
    ]
    zero_points = sum(n * k // 128 // 2 for n, k in LAYERS.values())
    orders = sum(4 * k for _, k in LAYERS.values())
    shapes = 16 * len(LAYERS)
    assert memory[0] - memory[1] == zero_points + orders - shapes


def test_floats_that_a_machine_converts_count_as_converted(tmp_path):
    half = tiny.Tensors({name: ("F32", shape) for name, (_, shape) in llama(tiny.bf16).items()})
    checkpoint = read_checkpoint(str(write_folder(tmp_path, half)))
    where = where_of(checkpoint, "h100-sxm", "trtllm")
    found = as_is_assignment(where, checkpoint)
    run = {scheme.name for scheme in found.assignment.schemes}
    assert run == {"FP32"}
    assert found.assignment.stored_bytes == checkpoint.tensor_bytes


def test_tensors_of_no_layer_are_said_not_counted(tmp_path):
    tensors = {**llama(tiny.bf16), "vision_tower.a.weight": ("BF16", (512, 512)), "vision_tower.b": ("BF16", (8,))}
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors)))
    found = as_is_assignment(where_of(checkpoint), checkpoint)
    assert found.assignment.stored_bytes == checkpoint.tensor_bytes - checkpoint.unknown_bytes
    assert "vision_tower.a.weight and others" in found.warnings[0]


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


def test_why_there_is_no_scheme_is_said(tmp_path):
    maker, quantization, _ = KINDS["LLM.int8"]
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(maker), quantization)))
    with pytest.raises(InputError, match=r"outliers apart .* W8A8 is a lower bound\. Name a scheme"):
        as_is_assignment(where_of(checkpoint), checkpoint)


def test_the_floats_of_ggml_run_in_llama_cpp_alone(tmp_path):
    path = tiny.write_gguf(tmp_path / "m.gguf", "llama", tiny.GGUF_KEYS, tiny.gguf_llama("MXFP4", "NVFP4"))
    checkpoint = read_checkpoint(str(path))
    found = as_is_assignment(where_of(checkpoint, "x86-avx512", "llama.cpp"), checkpoint).assignment
    assert {scheme.name for scheme in found.schemes} >= {"GGML-MXFP4", "GGML-NVFP4"}
    with pytest.raises(CapabilityError):
        as_is_assignment(where_of(checkpoint, "h100-sxm", "vllm"), checkpoint)


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
