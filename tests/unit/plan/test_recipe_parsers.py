"""Recipes read by the tools themselves, where they are installed; see test_recipe_expansion.py for the rest."""

import json

import pytest
import yaml
from planned import inputs_of, planned, shuffled

from codesign.plan.recipes.llm_compressor import activation_arguments, weight_arguments
from codesign.plan.recipes.make import make_recipe
from codesign.plan.recipes.registry import find_tool
from codesign.schemes.catalog import parse_scheme


def text_of(tool, pool, hardware="h100", library="vllm", kv="fp8"):
    plan = shuffled(planned("llama-3.1-8b", hardware, library, kv=kv), tool, pool, 11)
    return make_recipe(inputs_of(plan), find_tool(tool)).text


INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
FLOAT4 = {"num_bits": 4, "type": "float", "symmetric": True}
E4M3_SCALES = {"scale_dtype": "torch.float8_e4m3fn"}
E8M0_SCALES = {"scale_dtype": "torch.uint8"}
# compressed-tensors 0.20, quantization/quant_scheme.py: PRESET_SCHEMES.
PRESETS = [
    ("W8A8", INT8 | {"strategy": "channel", "dynamic": False}, INT8 | {"strategy": "token", "dynamic": True}),
    ("W4A16-g128", INT8 | {"num_bits": 4, "strategy": "group", "group_size": 128, "dynamic": False}, None),
    ("W4A16-g128-asym", INT8 | {"num_bits": 4, "strategy": "group", "group_size": 128, "dynamic": False,
                                "symmetric": False}, None),
    ("FP8", FLOAT8 | {"strategy": "tensor", "dynamic": False},
     FLOAT8 | {"strategy": "tensor", "dynamic": False, "observer": "static_minmax"}),
    ("FP8-channel", FLOAT8 | {"strategy": "channel", "dynamic": False},
     FLOAT8 | {"strategy": "token", "dynamic": True}),
    ("FP8-block", FLOAT8 | {"strategy": "block", "block_structure": [128, 128], "dynamic": False},
     FLOAT8 | {"strategy": "group", "group_size": 128, "dynamic": True}),
    ("NVFP4-A16", FLOAT4 | E4M3_SCALES | {"strategy": "tensor_group", "group_size": 16, "dynamic": False}, None),
    ("NVFP4", FLOAT4 | E4M3_SCALES | {"strategy": "tensor_group", "group_size": 16, "dynamic": False},
     FLOAT4 | E4M3_SCALES | {"strategy": "tensor_group", "group_size": 16, "dynamic": "local",
                             "observer": "static_minmax"}),
    ("MXFP4-A16", FLOAT4 | E8M0_SCALES | {"strategy": "group", "group_size": 32, "dynamic": False}, None),
    ("MXFP4", FLOAT4 | E8M0_SCALES | {"strategy": "group", "group_size": 32, "dynamic": False},
     FLOAT4 | E8M0_SCALES | {"strategy": "group", "group_size": 32, "dynamic": True}),
    ("MXFP8", FLOAT8 | E8M0_SCALES | {"strategy": "group", "group_size": 32, "dynamic": False},
     FLOAT8 | E8M0_SCALES | {"strategy": "group", "group_size": 32, "dynamic": True}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "weights", "inputs"), PRESETS)
def test_arguments_are_those_of_the_presets_of_compressed_tensors(name, weights, inputs):
    assert weight_arguments(parse_scheme(name)) == weights
    assert activation_arguments(parse_scheme(name)) == inputs


def test_llm_compressor_reads_the_recipe():
    recipes = pytest.importorskip("llmcompressor.recipe", reason="llm-compressor is not installed (it needs torch)")
    text = text_of("llm-compressor", ("W4A16-g128", "FP8-block", "W8A8"))
    names = [type(modifier).__name__ for modifier in recipes.Recipe.create_instance(text).modifiers]
    assert names == list(yaml.safe_load(text)["quant_stage"]["quant_modifiers"])


def test_compressed_tensors_reads_the_config_groups():
    module = pytest.importorskip(
        "compressed_tensors.quantization", reason="compressed-tensors is not installed (it needs torch)"
    )
    text = text_of("llm-compressor", ("W4A16-g128", "FP8-block", "W8A8"))
    for part in yaml.safe_load(text)["quant_stage"]["quant_modifiers"].values():
        if "config_groups" in part:
            known = {key: part[key] for key in ("config_groups", "ignore", "kv_cache_scheme") if key in part}
            assert len(module.QuantizationConfig(**known).config_groups) == len(part["config_groups"])


def test_torchao_reads_the_config():
    config = pytest.importorskip("torchao.core.config", reason="torchao is not installed (it needs torch)")
    given = json.loads(text_of("torchao", ("W4A16-g128", "W8A16", "W8A8"), library="torch", kv=""))
    found = config.config_from_dict(given)
    assert list(found.fqn_to_config) == list(given["_data"]["fqn_to_config"])


def test_gptqmodel_reads_the_overrides():
    module = pytest.importorskip("gptqmodel.quantization", reason="GPTQModel is not installed (it needs torch)")
    given = json.loads(text_of("gptqmodel", ("W4A16-g128", "W8A16", "BF16"), hardware="a100", kv=""))
    given.pop("meta")
    config = module.QuantizeConfig(**given)
    assert config.dynamic_get("model.layers.0.self_attn.q_proj", "bits", config.bits) in (4, 8, False)


def test_modelopt_reads_the_config():
    module = pytest.importorskip(
        "modelopt.torch.quantization.config", reason="Model Optimizer is not installed (it needs torch)"
    )
    from test_recipe_expansion import modelopt_config

    config = modelopt_config(text_of("modelopt", ("FP8", "W4A16-g128", "W8A16")))
    assert len(module.QuantizeConfig(**config).quant_cfg) == len(config["quant_cfg"])
