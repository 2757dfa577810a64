"""Tiny checkpoints of every kind met in the wild: the scheme of each layer, and every byte accounted."""

import json
import math

import pytest

from codesign.checkpoint.checkpoint import find_checkpoint, read_checkpoint
from codesign.errors import InputError
from codesign.model.file import load_model
from codesign.model.groups import fused_groups
from codesign.model.safetensors_file import read_safetensors
from codesign.schemes.storage import weight_bytes
from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import LAYERS, llama, write_folder

A8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
F8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
FP8_TOKENS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_STATIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
FP4_LOCAL = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}


def compressed(*groups, **more):
    """Return a config of compressed-tensors from (targets, weights, input activations)."""
    named = {
        f"group_{i}": {"targets": list(targets), "weights": weights, "input_activations": inputs}
        for i, (targets, weights, inputs) in enumerate(groups)
    }
    return {"quant_method": "compressed-tensors", "config_groups": named, "ignore": ["lm_head"], **more}


def modelopt(algorithm, **more):
    quantization = {"quant_algo": algorithm, "exclude_modules": ["lm_head"], **more}
    return {"quant_method": "modelopt", "quantization": quantization}


LINEAR = ("Linear",)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
KINDS = {
    "bf16": (tiny.bf16, None, "BF16"),
    "gptq": (tiny.gptq(), GPTQ, "W4A16-g128"),
    "gptq whole rows": (tiny.gptq(4, -1), {**GPTQ, "group_size": -1}, "W4A16"),
    "gptq 8 bits": (tiny.gptq(8, 32), {**GPTQ, "bits": 8, "group_size": 32}, "W8A16-g32"),
    "gptq 3 bits": (tiny.gptq(3), {**GPTQ, "bits": 3}, "W3A16-g128"),
    "gptq_v2 asymmetric": (tiny.gptq(), {**GPTQ, "checkpoint_format": "gptq_v2", "sym": False}, "W4A16-g128-asym"),
    "awq": (tiny.awq, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "W4A16-g128-asym"),
    "auto-round": (tiny.gptq(), {**GPTQ, "quant_method": "auto-round"}, "W4A16-g128"),
    "pack-quantized": (tiny.packed(), compressed((LINEAR, W4, None)), "W4A16-g128"),
    "pack-quantized with zeros": (tiny.packed(zeros=True), compressed((LINEAR, W4, None)), "W4A16-g128-asym"),
    "W4A8": (tiny.packed(), compressed((LINEAR, W4, A8)), "W4A8-g128"),
    "W4A8 in fp8": (
        tiny.packed(), compressed((LINEAR, W4, FP8_TOKENS)), "int4 per group of 128, fp8 activations per token",
    ),
    "int-quantized": (tiny.int8(), compressed((LINEAR, W8, A8)), "W8A8"),
    "int-quantized static": (
        tiny.int8(), compressed((LINEAR, W8, {**A8, "strategy": "tensor", "dynamic": False})), "W8A8-static",
    ),
    "int8 weights only": (tiny.int8(), compressed((LINEAR, W8, None)), "W8A16"),
    "float-quantized": (tiny.fp8(lambda n, k: (n, 1)), compressed((LINEAR, F8, FP8_TOKENS)), "FP8-channel"),
    "fp8 static": (tiny.fp8(lambda n, k: (1,), inputs=True), compressed((LINEAR, F8, FP8_STATIC)), "FP8"),
    "nvfp4": (tiny.nvfp4, compressed((LINEAR, {"num_bits": 4, "type": "float"}, FP4_LOCAL)), "NVFP4"),
    "nvfp4a16": (tiny.nvfp4, compressed((LINEAR, {"num_bits": 4, "type": "float"}, None)), "NVFP4-A16"),
    "deepseek fp8": (
        tiny.fp8(lambda n, k: (n // 128, k // 128), "weight_scale_inv"),
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "FP8-block",
    ),
    "vllm fp8 static": (
        tiny.fp8(lambda n, k: (), inputs=True), {"quant_method": "fp8", "activation_scheme": "static"}, "FP8",
    ),
    "vllm fp8 dynamic": (
        tiny.fp8(lambda n, k: ()), {"quant_method": "fp8", "activation_scheme": "dynamic"}, "FP8-dynamic",
    ),
    "modelopt fp8": (tiny.fp8(lambda n, k: (), inputs=True), modelopt("FP8"), "FP8"),
    "modelopt nvfp4": (tiny.modelopt_nvfp4, modelopt("NVFP4"), "NVFP4"),
    "modelopt awq": (tiny.modelopt_int4, modelopt("W4A16_AWQ"), "W4A16-g128"),
    "nf4": (tiny.bitsandbytes(), {"quant_method": "bitsandbytes", "load_in_4bit": True}, "NF4"),
    "nf4 once": (
        tiny.bitsandbytes(double=False), {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "NF4 per 64, 32-bit scales, 16-bit activations",
    ),
    "fp4": (
        tiny.bitsandbytes("fp4"), {"load_in_4bit": True}, "FP4 per 64, double-quantized scales, 16-bit activations",
    ),
    "LLM.int8": (
        tiny.llm_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "LLM.int8 (int8 per channel, outliers in 16 bits)",
    ),
    "hqq": (
        tiny.hqq, {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        "HQQ int4 per 64, 16-bit activations",
    ),
    "torchao of before": (tiny.old_torchao, {"quant_method": "torchao", "quant_type": {}}, "torchao I8"),
    "torchao": (tiny.torchao, {"quant_method": "torchao", "quant_type": {}}, "torchao I8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_scheme_and_accounts_every_byte(kind, tmp_path):
    maker, quantization, wanted = KINDS[kind]
    folder = write_folder(tmp_path, llama(maker), quantization)
    checkpoint = read_checkpoint(str(folder))
    assert {name: [str(s) for s in checkpoint.schemes[name]] for name in LAYERS} == {name: [wanted] for name in LAYERS}
    assert [str(s) for s in checkpoint.schemes["lm_head"]] == ["BF16"]
    assert (checkpoint.unknown, checkpoint.warnings) == ((), ())
    stored = read_safetensors(folder / "model.safetensors")
    assert checkpoint.tensor_bytes == sum(tensor.byte_count for tensor in stored.tensors)
    assert checkpoint.file_bytes == (folder / "model.safetensors").stat().st_size
    model = load_model(folder)
    assert sum(checkpoint.weights_by_scheme.values()) == sum(
        layer.weight_count for layer in (model.embedding, *model.layers)
    )
    assert sum(math.prod(tensor.shape) for tensor in checkpoint.other) == model.other_parameter_count + sum(
        block.other_parameter_count for block in model.blocks
    )


@pytest.mark.parametrize("kind", ["pack-quantized", "awq", "deepseek fp8", "modelopt nvfp4", "nf4"])
def test_bytes_agree_with_the_storage_formulae_of_the_scheme(kind, tmp_path):
    maker, quantization, wanted = KINDS[kind]
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(maker), quantization)))
    scheme = next(layer.stored.scheme for layer in checkpoint.layers if layer.role == "gate")
    formula = sum(weight_bytes(scheme, n, k) for n, k in LAYERS.values())
    # Small tensors beside: shapes, tables of levels, scales of inputs, scales before the weights, wider scales.
    assert checkpoint.bytes_by_scheme[wanted] == pytest.approx(formula, rel=0.04)


def test_scales_zero_points_and_orders_are_counted(tmp_path):
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(tiny.gptq()), GPTQ)))
    layer = next(layer for layer in checkpoint.layers if layer.name == "model.layers.0.mlp.down_proj")
    n, k = 256, 512
    assert layer.byte_count == n * k // 2 + (k // 128) * n * 2 + (k // 128) * n // 2 + 4 * k
    assert 8 * layer.byte_count / layer.weight_count == pytest.approx(4.28, abs=0.01)


def test_several_groups_patterns_and_ignored_layers(tmp_path):
    quantization = compressed(
        (["re:.*mlp.*"], {**W4}, None), (["re:.*self_attn.(q|k|v)_proj$"], W8, A8),
        kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
        format="mixed-precision",
    )  # fmt: skip
    quantization["ignore"] = ["lm_head", "re:.*o_proj"]
    tensors = llama(tiny.packed(), o_proj=tiny.bf16, self_attn=tiny.int8())
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors, quantization)))
    found = {name.rpartition(".")[2]: str(checkpoint.schemes[name][0]) for name in LAYERS}
    assert found == {
        "q_proj": "W8A8", "k_proj": "W8A8", "v_proj": "W8A8", "o_proj": "BF16",
        "gate_proj": "W4A16-g128", "up_proj": "W4A16-g128", "down_proj": "W4A16-g128",
    }  # fmt: skip
    assert (checkpoint.kv, checkpoint.warnings) == ("fp8", ())


def test_dynamic_of_gptq_changes_and_skips_modules(tmp_path):
    quantization = {**GPTQ, "dynamic": {r"+:.*\.1\..*down.*": {"bits": 8, "group_size": 32}, r"-:.*v_proj": {}}}
    tensors = llama(tiny.gptq(), v_proj=tiny.bf16)
    for part in tiny.gptq()(1, 128):
        del tensors[f"model.layers.1.mlp.down_proj.{part}"]
    tensors |= {
        f"model.layers.1.mlp.down_proj.{part}": t
        for part, t in tiny.gptq(8, 32)(*LAYERS["model.layers.1.mlp.down_proj"]).items()
    }
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors, quantization)))
    assert str(checkpoint.schemes["model.layers.1.mlp.down_proj"][0]) == "W8A16-g32"
    assert str(checkpoint.schemes["model.layers.0.mlp.down_proj"][0]) == "W4A16-g128"
    assert str(checkpoint.schemes["model.layers.0.self_attn.v_proj"][0]) == "BF16"
    assert checkpoint.warnings == ()


def test_mixed_precision_of_modelopt_is_read_beside_the_config(tmp_path):
    layers = {
        name: {"quant_algo": "FP8"} if "self_attn" in name else {"quant_algo": "NVFP4", "group_size": 16}
        for name in LAYERS
    }
    tensors = llama(tiny.modelopt_nvfp4, self_attn=tiny.fp8(lambda n, k: (), inputs=True))
    folder = write_folder(tmp_path, tensors)
    own = {"producer": {"name": "modelopt"}, "quantization": {
        "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}}  # fmt: skip
    (folder / "hf_quant_config.json").write_text(json.dumps(own))
    checkpoint = read_checkpoint(str(folder))
    assert set(checkpoint.bytes_by_scheme) == {"NVFP4", "FP8", "BF16"}
    assert (checkpoint.method, checkpoint.kv, checkpoint.warnings) == ("modelopt", "fp8", ())


def test_tensors_are_believed_against_the_config_which_is_said(tmp_path):
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(tiny.bf16), GPTQ)))
    assert set(checkpoint.bytes_by_scheme) == {"BF16"}
    assert len(checkpoint.warnings) == 1
    assert "13 more" in checkpoint.warnings[0]
    (tmp_path / "b").mkdir()
    checkpoint = read_checkpoint(str(write_folder(tmp_path / "b", llama(tiny.awq))))
    assert "no quantization_config" in checkpoint.warnings[0]


def test_tied_head_follows_the_embedding_and_missing_layers_are_said(tmp_path):
    tensors = llama(tiny.bf16)
    del tensors["lm_head.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors, None, {"tie_word_embeddings": True})))
    assert str(checkpoint.schemes["lm_head"][0]) == "BF16"
    assert checkpoint.warnings == ("model.layers.1.mlp.up_proj: no tensor holds this layer of the model.",)


def test_tensors_of_no_layer_are_listed_and_counted(tmp_path):
    tensors = llama(tiny.bf16)
    tensors["model.layers.7.mlp.up_proj.weight"] = ("BF16", (8, 8))
    tensors["vision_tower.patch.weight"] = ("BF16", (4, 4))
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors)))
    assert {tensor.name for tensor in checkpoint.unknown} == {
        "model.layers.7.mlp.up_proj.weight", "vision_tower.patch.weight",
    }  # fmt: skip
    assert checkpoint.unknown_bytes == 2 * (64 + 16)


def test_a_layer_of_another_shape_than_the_config_is_said(tmp_path):
    tensors = llama(tiny.bf16)
    tensors["model.layers.0.mlp.up_proj.weight"] = ("BF16", (8, 256))
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors)))
    assert "its shape is not that of the layer" in checkpoint.warnings[0]


def test_names_of_wrappers_and_of_bare_models_are_found(tmp_path):
    bare = {name.removeprefix("model."): stored for name, stored in llama(tiny.bf16).items()}
    checkpoint = read_checkpoint(str(write_folder(tmp_path, bare)))
    assert (checkpoint.unknown, checkpoint.warnings) == ((), ())
    wrapped = {f"language_model.{name}": stored for name, stored in llama(tiny.bf16).items()}
    checkpoint = read_checkpoint(str(write_folder(tmp_path, wrapped)))
    assert (checkpoint.unknown, checkpoint.warnings) == ((), ())


def test_gpt_oss_experts_are_mxfp4(tmp_path):
    config = {
        "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32, "num_local_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 128, "sliding_window": 16,
    }  # fmt: skip
    block = "model.layers.0"
    tensors: tiny.Tensors = {
        "model.embed_tokens.weight": ("BF16", (32, 64)), "lm_head.weight": ("BF16", (32, 64)),
        "model.norm.weight": ("BF16", (64,)), f"{block}.input_layernorm.weight": ("BF16", (64,)),
        f"{block}.post_attention_layernorm.weight": ("BF16", (64,)), f"{block}.self_attn.sinks": ("BF16", (4,)),
        f"{block}.mlp.router.weight": ("BF16", (4, 64)), f"{block}.mlp.router.bias": ("BF16", (4,)),
        f"{block}.mlp.experts.gate_up_proj_blocks": ("U8", (4, 128, 2, 16)),
        f"{block}.mlp.experts.gate_up_proj_scales": ("U8", (4, 128, 2)),
        f"{block}.mlp.experts.gate_up_proj_bias": ("BF16", (4, 128)),
        f"{block}.mlp.experts.down_proj_blocks": ("U8", (4, 64, 2, 16)),
        f"{block}.mlp.experts.down_proj_scales": ("U8", (4, 64, 2)),
        f"{block}.mlp.experts.down_proj_bias": ("BF16", (4, 64)),
    }  # fmt: skip
    for name, n, k in (("q", 64, 64), ("k", 32, 64), ("v", 32, 64), ("o", 64, 64)):
        tensors[f"{block}.self_attn.{name}_proj.weight"] = ("BF16", (n, k))
        tensors[f"{block}.self_attn.{name}_proj.bias"] = ("BF16", (n,))
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    checkpoint = read_checkpoint(str(write_folder(tmp_path, tensors, quantization, config)))
    assert str(checkpoint.schemes[f"{block}.mlp.experts"][0]) == "MXFP4-A16"
    assert checkpoint.weights_by_scheme["MXFP4-A16"] == 4 * 3 * 64 * 64
    assert checkpoint.bytes_by_scheme["MXFP4-A16"] == 4 * 192 * (32 + 2) + 2 * 4 * 192
    assert (checkpoint.unknown, checkpoint.warnings) == ((), ())


def test_experts_of_several_schemes_are_counted_apart(tmp_path):
    config = {
        "model_type": "qwen3_moe", "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 32,
        "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    block = "model.layers.0"
    tensors: tiny.Tensors = {f"{block}.mlp.gate.weight": ("BF16", (4, 128))}
    for i in range(4):
        for name in ("gate_proj", "up_proj", "down_proj"):
            maker = tiny.bf16 if i == 3 else tiny.packed()
            tensors |= {f"{block}.mlp.experts.{i}.{name}.{part}": t for part, t in maker(128, 128).items()}
    folder = write_folder(tmp_path, tensors, compressed((LINEAR, W4, None)), config)
    checkpoint = read_checkpoint(str(folder))
    assert {str(s) for s in checkpoint.schemes[f"{block}.mlp.experts"]} == {"W4A16-g128", "BF16"}
    assert checkpoint.weights_by_scheme["W4A16-g128"] == 9 * 128 * 128


def test_a_405b_checkpoint_of_191_shards(tmp_path):
    model = load_model("llama-3.1-405b")
    names = [layer.name for layer in (model.embedding, *model.layers)]
    shards: list[tiny.Tensors] = [{} for _ in range(191)]
    for i, name in enumerate(names):
        shards[i % 191][f"{name}.weight"] = ("BF16", (0,))
    weight_map = {}
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05}-of-00191.safetensors"
        (tmp_path / file).write_bytes(tiny.tensor_file(tensors))
        weight_map |= dict.fromkeys(tensors, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(str(tmp_path))
    assert checkpoint.model.parameter_count == model.parameter_count
    assert len(checkpoint.layers) == len(names)
    assert checkpoint.unknown == ()
    assert len(fused_groups(checkpoint.model)) == len(fused_groups(model))


def test_a_folder_without_weights_has_no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.LLAMA))
    assert find_checkpoint(str(tmp_path)) is None
    with pytest.raises(InputError, match="no safetensors or GGUF"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ([], "quantization_config"),
        ({"quant_method": 4}, "quant_method"),
        ({"quant_method": "gptq", "bits": "four"}, "bits"),
        ({"quant_method": "gptq", "bits": 10**9}, "bits"),
        ({"quant_method": "gptq", "dynamic": [1]}, "dynamic"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 1}}, "config_groups"),
        ({"quant_method": "compressed-tensors", "ignore": [1]}, "ignore"),
        ({"quant_method": "modelopt", "quantization": {"exclude_modules": "x"}}, "exclude_modules"),
    ],
)
def test_a_wrong_config_is_refused_with_the_key(quantization, words, tmp_path):
    folder = write_folder(tmp_path, llama(tiny.bf16), quantization or 1)
    with pytest.raises(InputError, match=words):
        read_checkpoint(str(folder))


def test_an_unknown_method_is_a_warning(tmp_path):
    checkpoint = read_checkpoint(str(write_folder(tmp_path, llama(tiny.bf16), {"quant_method": "quip"})))
    assert any('"quip" is not known' in warning for warning in checkpoint.warnings)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "m.pth", "m.ckpt", "m.pkl", "m.pickle"])
def test_pickles_are_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="pickle"):
        find_checkpoint(str(tmp_path / name))
