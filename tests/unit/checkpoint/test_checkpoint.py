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
from tests.checkpoint_kinds import A8, GPTQ, KINDS, LINEAR, W4, W8, compressed
from tests.tiny_checkpoints import LAYERS, llama, write_folder


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


@pytest.mark.parametrize(
    "kind",
    [
        "pack-quantized", "awq", "deepseek fp8", "modelopt nvfp4", "nf4", "nf4 once", "fp4", "fp4 once", "hqq",
        "torchao int4", "torchao int4 in tiles", "W4A8 in fp8",
    ],
)  # fmt: skip
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
