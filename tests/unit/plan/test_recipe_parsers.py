"""Recipes read by the tools themselves, where they are installed; see test_recipe_expansion.py for the rest.

Every name of the model is asked for, with the tool's own matching: exactly the plan must come back.
"""

import json
import re
import shlex
import warnings
from importlib import import_module

import pytest
import yaml
from planned import DECOYS, inputs_of, module_names, planned, shuffled
from recipe_text import commands, modelopt_config

from codesign.plan.recipes.make import make_recipe
from codesign.plan.recipes.registry import find_tool
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.compressed_arguments import activation_arguments, weight_arguments
from codesign.schemes.scheme import PerGroup

MODELS = ("llama-3.1-8b", "qwen3-32b", "deepseek-v2-lite", "phi-4", "gemma-3-4b")


def needed(module: str, package: str):
    """Return the tool's module; the test is skipped where its package is absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other projects when they are loaded
        pytest.importorskip(module.partition(".")[0], reason=f"{package} is not installed")
        return import_module(module)


def plan_and_text(tool, pool, model="llama-3.1-8b", hardware="h100", library="vllm", **options):
    plan = shuffled(planned(model, hardware, library, **options), tool, pool, 11)
    return plan, make_recipe(inputs_of(plan), find_tool(tool)).text


def check(plan, read, same):
    """Compare what the tool reads for every name with the plan's scheme; `read` gives None for 16 bits."""
    names = module_names(plan)
    assert len(set(names.values())) > 1
    for name, wanted in names.items():
        scheme, found = parse_scheme(wanted), read(name)
        assert (found is not None) == scheme.quantized, (name, wanted, found)
        assert found is None or same(found, scheme), (name, wanted, found)
    assert all(read(name) is None for name in DECOYS)


def group_size(scheme):
    granularity = scheme.weights.granularity
    return granularity.size if isinstance(granularity, PerGroup) else -1


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
# Their names in compressed-tensors.
PRESET_NAMES = {
    "W8A8": "W8A8", "W4A16-g128": "W4A16", "W4A16-g128-asym": "W4A16_ASYM", "FP8": "FP8", "FP8-channel": "FP8_DYNAMIC",
    "FP8-block": "FP8_BLOCK", "NVFP4-A16": "NVFP4A16", "NVFP4": "NVFP4", "MXFP4-A16": "MXFP4A16", "MXFP4": "MXFP4",
    "MXFP8": "MXFP8",
}  # fmt: skip


@pytest.mark.parametrize(("name", "weights", "inputs"), PRESETS)
def test_arguments_are_those_of_the_presets_of_compressed_tensors(name, weights, inputs):
    assert weight_arguments(parse_scheme(name)) == weights
    assert activation_arguments(parse_scheme(name)) == inputs


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_compressed_tensors_has_these_presets(name):
    schemes = needed("compressed_tensors.quantization", "compressed-tensors")
    scheme = parse_scheme(name)
    ours = {"targets": [], "weights": weight_arguments(scheme), "input_activations": activation_arguments(scheme)}
    preset = schemes.preset_name_to_scheme(PRESET_NAMES[name], [])
    found, wanted = schemes.QuantizationScheme.model_validate(ours), preset
    for part in ("weights", "input_activations"):
        mine, theirs = getattr(found, part), getattr(wanted, part)
        assert (mine is None) == (theirs is None)
        keys = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic", "scale_dtype")
        assert mine is None or all(getattr(mine, key) == getattr(theirs, key) for key in keys), (mine, theirs)


COMPRESSED = ("BF16", "W4A16-g128", "W8A16", "FP8-block", "W8A8", "FP8-channel", "MXFP4-A16", "W4A16-g128-asym")


def compressed_config(text):
    """Return the parts that make up compressed-tensors' config, as llm-compressor puts them together."""
    parts = list(yaml.safe_load(text)["quant_stage"]["quant_modifiers"].values())
    groups = {name: group for part in parts for name, group in part.get("config_groups", {}).items()}
    ignore = next(part["ignore"] for part in parts if "ignore" in part)
    kv = next((part["kv_cache_scheme"] for part in parts if "kv_cache_scheme" in part), None)
    return {"config_groups": groups, "ignore": ignore, "kv_cache_scheme": kv}


@pytest.mark.parametrize("model", MODELS)
def test_compressed_tensors_matches_exactly_the_plan(model):
    quantization = needed("compressed_tensors.quantization", "compressed-tensors")
    match = needed("compressed_tensors.utils.match", "compressed-tensors")
    linear = needed("torch", "torch").nn.Linear(1, 1, device="meta")
    plan, text = plan_and_text("llm-compressor", COMPRESSED, model)
    config = quantization.QuantizationConfig.model_validate(compressed_config(text))

    def read(name):
        groups = config.config_groups.values()
        found = [group for group in groups if match.is_match(name, linear, group.targets, config.ignore)]
        assert len(found) <= 1, name
        return found[0] if found else None

    def same(found, scheme):
        wanted = quantization.QuantizationArgs.model_validate(weight_arguments(scheme))
        return found.weights == wanted and (found.input_activations is None) == scheme.weight_only

    assert len(config.config_groups) > 2
    check(plan, read, same)


def test_compressed_tensors_reads_the_cache_scheme():
    quantization = needed("compressed_tensors.quantization", "compressed-tensors")
    _, text = plan_and_text("llm-compressor", ("W4A16-g128", "W8A8"), kv="fp8")
    config = quantization.QuantizationConfig.model_validate(compressed_config(text))
    assert (config.kv_cache_scheme.num_bits, config.kv_cache_scheme.type) == (8, "float")


def test_transformers_reads_the_config_of_compressed_tensors():
    configs = needed("transformers.utils.quantization_config", "transformers")
    needed("compressed_tensors", "compressed-tensors")
    _, text = plan_and_text("llm-compressor", ("W4A16-g128", "W8A8", "BF16"))
    given = compressed_config(text)
    config = configs.CompressedTensorsConfig(**given)
    assert set(config.quantization_config.config_groups) == set(given["config_groups"])


@pytest.mark.parametrize("method", ["", "awq", "rtn"])
def test_llm_compressor_reads_the_recipe(method):
    recipes = needed("llmcompressor.recipe", "llm-compressor")
    pool = ("W4A16-g128", "W4A16-g128-asym") if method == "awq" else ("W4A16-g128", "FP8-block", "W8A8")
    plan = shuffled(planned("llama-3.1-8b", "h100", "vllm"), "llm-compressor", pool, 11, method)
    text = make_recipe(inputs_of(plan), find_tool("llm-compressor")).text
    modifiers = recipes.Recipe.create_instance(text).modifiers
    given = yaml.safe_load(text)["quant_stage"]["quant_modifiers"]
    assert [type(modifier).__name__ for modifier in modifiers] == list(given)
    for modifier, part in zip(modifiers, given.values(), strict=True):
        if "config_groups" in part:
            assert set(modifier.resolved_config.config_groups) == set(part["config_groups"])


TORCHAO = ("W4A16-g128", "W8A16", "W8A8", "FP8-channel", "BF16")
TORCHAO_TYPES = {"w4a16": "Int4WeightOnlyConfig", "w8a16": "Int8WeightOnlyConfig",
                 "w8a8": "Int8DynamicActivationInt8WeightConfig",
                 "fp8": "Float8DynamicActivationFloat8WeightConfig"}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_torchao_matches_exactly_the_plan(model):
    config_from_dict = needed("torchao.core.config", "torchao").config_from_dict
    quantization = needed("torchao.quantization", "torchao")
    plan, text = plan_and_text("torchao", TORCHAO, model, library="torch")
    config = config_from_dict(json.loads(text))

    def read(name):
        keys = config.fqn_to_config.items()
        found = [one for key, one in keys if quantization.fqn_matches_fqn_config(
            name, quantization.FqnToConfig({key: one}))]  # fmt: skip
        assert len(found) <= 1, name
        return found[0] if found else None

    def same(found, scheme):
        size = getattr(found, "group_size", None) or -1
        return type(found).__name__ == TORCHAO_TYPES[scheme.family] and size == group_size(scheme)

    check(plan, read, same)


def test_every_config_of_torchao_is_one_that_it_reads():
    config_from_dict = needed("torchao.core.config", "torchao").config_from_dict
    from codesign.schemes.catalog import SCHEMES
    from codesign.schemes.torchao_arguments import torchao_config

    written = [found for scheme in SCHEMES.values() if (found := torchao_config(scheme))]
    assert len(written) > 10
    assert all(type(config_from_dict(one)).__name__ == one["_type"] for one in written)


def test_transformers_takes_the_config_of_torchao():
    config_from_dict = needed("torchao.core.config", "torchao").config_from_dict
    configs = needed("transformers.utils.quantization_config", "transformers")
    _, text = plan_and_text("torchao", TORCHAO, library="torch")
    config = configs.TorchAoConfig(config_from_dict(json.loads(text)), include_input_output_embeddings=True)
    again = configs.TorchAoConfig.from_dict(config.to_dict())
    assert set(again.quant_type.fqn_to_config) == set(json.loads(text)["_data"]["fqn_to_config"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves a temporary folder behind
@pytest.mark.parametrize("model", MODELS)
def test_gptqmodel_matches_exactly_the_plan(model):
    module = needed("gptqmodel.quantization", "GPTQModel")
    plan, text = plan_and_text("gptqmodel", ("W4A16-g128", "W8A16-g128", "W4A16-g32", "BF16"), model, "a100")
    config = module.QuantizeConfig(**json.loads(text))

    def read(name):
        if name in DECOYS or (name == "lm_head" and not config.lm_head):
            return None  # GPTQModel goes through the modules of the blocks, and the head if it is asked to
        keys = ("bits", "group_size", "sym")
        found = {key: config.dynamic_get(name, key, getattr(config, key)) for key in keys}
        return None if found["bits"] is False else found

    check(plan, read, lambda found, scheme: list(found.values()) == [
        scheme.weights.bits, group_size(scheme), scheme.weights.symmetric])  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_auto_round_matches_exactly_the_plan(model):
    parser = needed("auto_round.cli.parser", "AutoRound").build_quantize_parser()
    common = needed("auto_round.utils", "AutoRound")
    plan, text = plan_and_text("autoround", ("W4A16-g128", "W8A16-g128", "W4A16-g32", "BF16"), model, "a100")
    given, unknown = parser.parse_known_args(shlex.split(commands(text)[0])[1:])
    layers = common.parse_layer_config_arg(given.layer_config)
    assert unknown == []

    def read(name):
        if name in (*DECOYS, "lm_head"):
            return None
        found = [keys for key, keys in layers.items() if re.search(common.to_standard_regex(key), name)]
        assert len(found) <= 1, name
        keys = found[0] if found else {"bits": int(given.scheme[1]), "group_size": given.group_size}
        return None if keys["bits"] == 16 else keys

    check(plan, read, lambda found, scheme: (
        found["bits"], found["group_size"]) == (scheme.weights.bits, group_size(scheme)))  # fmt: skip


def test_modelopt_reads_the_config():
    module = needed("modelopt.torch.quantization.config", "Model Optimizer")
    _, text = plan_and_text("modelopt", ("FP8", "W4A16-g128", "W8A16"))
    config = modelopt_config(text)
    assert len(module.QuantizeConfig(**config).quant_cfg) == len(config["quant_cfg"])
