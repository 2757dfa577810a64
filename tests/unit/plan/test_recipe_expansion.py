"""Expand every recipe over all names of the model, as its tool would: exactly the plan must come back."""

import fnmatch
import json
import re
import sys
from types import SimpleNamespace

import gguf
import pytest
import yaml
from planned import DECOYS, inputs_of, module_names, planned, shuffled
from recipe_text import arguments, commands, modelopt_config

from codesign.model.file import load_model
from codesign.plan.recipes.make import make_recipe
from codesign.plan.recipes.registry import find_tool
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import PerBlock, PerChannel, PerGroup, PerTensor

MODELS = ("llama-3.1-8b", "qwen3-32b", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v2-lite", "phi-4", "gemma-3-4b")
SMALL = ("llama-3.1-8b", "mixtral-8x7b", "deepseek-v2-lite", "phi-4")


def text_of(plan, tool):
    return make_recipe(inputs_of(plan), find_tool(tool)).text


def group_size(scheme):
    granularity = scheme.weights.granularity
    return granularity.size if isinstance(granularity, PerGroup) else None


def check(plan, read, same):
    """Compare what the tool reads for every name with the plan's scheme; `read` gives None for 16 bits."""
    names = module_names(plan)
    assert len(set(names.values())) > 1
    for name, wanted in names.items():
        scheme, found = parse_scheme(wanted), read(name)
        assert (found is not None) == scheme.quantized, (name, wanted, found)
        assert found is None or same(found, scheme), (name, wanted, found)
    assert all(read(name) is None for name in DECOYS)


LLM_COMPRESSOR = (
    "BF16", "W4A16-g128", "W4A16-g32", "W8A16", "W8A8", "W8A8-static", "FP8", "FP8-channel", "FP8-block",
    "MXFP4-A16", "W4A16-g128-asym", "W3A16-g128",
)  # fmt: skip


def compressed_tensors_reader(recipe):
    parts = yaml.safe_load(recipe)["quant_stage"]["quant_modifiers"]

    def read(name):
        found = []
        for part in parts.values():
            ignored = any(re.match(p.removeprefix("re:"), name) for p in part.get("ignore", ()))
            for group in part.get("config_groups", {}).values():
                if not ignored and any(re.match(p.removeprefix("re:"), name) for p in group["targets"]):
                    found.append(group)
        assert len(found) <= 1, name
        return found[0] if found else None

    return read


def same_as_compressed_tensors(group, scheme):
    weights, inputs = group["weights"], group.get("input_activations")
    strategies = {PerTensor: "tensor", PerChannel: "channel", PerBlock: "block", PerGroup: "group"}
    kind = "int" if scheme.weights.number.startswith("int") else "float"
    return (
        (weights["num_bits"], weights["type"]) == (scheme.weights.bits, kind)
        and weights["strategy"].replace("tensor_group", "group") == strategies[type(scheme.weights.granularity)]
        and weights.get("group_size") == group_size(scheme)
        and weights["symmetric"] == scheme.weights.symmetric
        and (inputs is None) == scheme.weight_only
        and (inputs is None or inputs["num_bits"] == scheme.activations.bits)
        and (inputs is None or bool(inputs["dynamic"]) == scheme.activations.dynamic)
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["", "awq", "rtn"])
def test_llm_compressor(model, method):
    plan = shuffled(planned(model, "h100", "vllm"), "llm-compressor", LLM_COMPRESSOR, 1, method)
    check(plan, compressed_tensors_reader(text_of(plan, "llm-compressor")), same_as_compressed_tensors)


def modelopt_reader(recipe):
    entries = modelopt_config(recipe)["quant_cfg"]

    def quantizer(name):
        state = None
        for entry in entries:
            if fnmatch.fnmatch(name, entry["quantizer_name"]):
                state = entry["cfg"] if "cfg" in entry else state if entry["enable"] else None
        return state

    def read(name):
        joint = "_" if name.endswith("experts.gate_up_proj") else "."
        weight = quantizer(f"{name}{joint}weight_quantizer")
        return None if weight is None else (weight, quantizer(f"{name}{joint}input_quantizer"))

    return read


def same_as_modelopt(found, scheme):
    weight, inputs = found
    bits = weight["num_bits"] if isinstance(weight["num_bits"], int) else 1 + sum(weight["num_bits"])
    blocks = weight.get("block_sizes") or {}
    return (
        bits == scheme.weights.bits
        and blocks.get(-1) == group_size(scheme)
        and (weight.get("axis") == 0) == isinstance(scheme.weights.granularity, PerChannel)
        and (inputs is None) == scheme.weight_only
    )


@pytest.mark.parametrize("model", SMALL)
def test_modelopt(model):
    pool = ("BF16", "FP8", "FP8-channel", "W4A16-g128", "W4A16-g64", "W8A16", "W8A8-static", "NVFP4", "NVFP4-A16")
    hardware, library = ("h100", "vllm")
    plan = shuffled(planned(model, hardware, library), "modelopt", pool, 2)
    check(plan, modelopt_reader(text_of(plan, "modelopt")), same_as_modelopt)


GPTQ = ("BF16", "W4A16-g128", "W4A16-g32", "W8A16-g128", "W4A16", "W3A16-g128")


def gptqmodel_reader(recipe):
    """Read `dynamic` as GPTQModel's README says: first match wins, `-:` skips, the head only if `lm_head`."""
    config = json.loads(recipe)

    def read(name):
        if name in DECOYS or (name == "lm_head" and not config["lm_head"]):
            return None
        for pattern, changes in config["dynamic"].items():
            if re.match(pattern[2:], name):
                return None if pattern.startswith("-:") else config | changes
        return config

    return read


def same_as_gptqmodel(found, scheme):
    wanted = (scheme.weights.bits, group_size(scheme) or -1, scheme.weights.symmetric)
    return (found["bits"], found["group_size"], found["sym"]) == wanted


@pytest.mark.parametrize("model", MODELS)
def test_gptqmodel(model):
    plan = shuffled(planned(model, "a100", "vllm"), "gptqmodel", GPTQ, 3)
    check(plan, gptqmodel_reader(text_of(plan, "gptqmodel")), same_as_gptqmodel)


def test_gptqmodel_makes_awq_of_one_bit_width():
    plan = shuffled(planned("llama-3.1-8b", "a100", "vllm"), "gptqmodel", ("W4A16-g128-asym", "BF16"), 4, "awq")
    text = text_of(plan, "gptqmodel")
    check(plan, gptqmodel_reader(text), same_as_gptqmodel)
    config = json.loads(text)
    assert (config["method"], config["format"], config["sym"]) == ("awq", "gemm", False)


def auto_round_expression(pattern):
    """Return the expression that auto_round/utils/common.py (to_standard_regex) makes of a key with anchors."""
    assert pattern.startswith("^")
    assert pattern.endswith("$")
    return "".join(r"\." if c == "." and pattern[i + 1 : i + 2] != "*" else c for i, c in enumerate(pattern))


def autoround_reader(recipe):
    given = arguments(commands(recipe)[0])
    base = {"bits": int(given["--scheme"][0][1]), "sym": "--asym" not in given}
    base["group_size"] = int(given["--group_size"][0])
    layers = json.loads(given["--layer_config"][0])

    def read(name):
        if name in (*DECOYS, "lm_head"):
            return None
        for pattern, keys in layers.items():
            if re.search(auto_round_expression(pattern), name):
                return None if keys["bits"] == 16 else keys
        return base

    return read


@pytest.mark.parametrize("model", MODELS)
def test_autoround(model):
    pool = ("BF16", "W4A16-g128", "W4A16-g32", "W8A16-g128", "W4A16-g64-asym")
    plan = shuffled(planned(model, "a100", "vllm"), "autoround", pool, 5)
    check(plan, autoround_reader(text_of(plan, "autoround")), same_as_gptqmodel)


def test_autoround_formats_with_activations():
    plan = shuffled(planned("llama-3.1-8b", "h100", "vllm", kv="fp8"), "autoround", ("W8A8", "FP8-block", "BF16"), 6)
    given = arguments(commands(text_of(plan, "autoround"))[0])
    assert given["--format"] == ["llm_compressor"]
    assert given["--static_kv_dtype"] == ["fp8"]
    assert given["--scheme"][0] in ("INT8", "FP8_BLOCK")


GGUF_NAMES = {
    "self_attn.q_proj": ["attn_q"], "self_attn.k_proj": ["attn_k"], "self_attn.v_proj": ["attn_v"],
    "self_attn.o_proj": ["attn_output"], "self_attn.qkv_proj": ["attn_qkv"],
    "self_attn.kv_a_proj_with_mqa": ["attn_kv_a_mqa"], "self_attn.kv_b_proj": ["attn_kv_b", "attn_k_b", "attn_v_b"],
    "mlp.gate_proj": ["ffn_gate"], "mlp.up_proj": ["ffn_up"], "mlp.down_proj": ["ffn_down"],
    "mlp.gate_up_proj": ["ffn_up"],
    "mlp.shared_experts.gate_proj": ["ffn_gate_shexp"], "mlp.shared_experts.up_proj": ["ffn_up_shexp"],
    "mlp.shared_experts.down_proj": ["ffn_down_shexp"],
    "experts": ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
}  # fmt: skip


@pytest.mark.parametrize("model", [name for name in MODELS if name != "gpt-oss-20b"])
def test_llama_cpp(model):
    pool = ("Q8_0", "Q6_K", "Q4_K", "IQ4_XS", "BF16")
    plan = shuffled(planned(model, "x86-avx512", "llama.cpp"), "llama.cpp", pool, 7)
    given = arguments(next(line for line in commands(text_of(plan, "llama.cpp")) if line.startswith("llama-quantize")))
    rules = [rule.rsplit("=", 1) for rule in given["--tensor-type"]]
    for name, wanted in module_names(plan).items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
        kind = "experts" if match and ".experts." in name else match[2] if match else ""
        for tensor in GGUF_NAMES.get(kind, ()):
            types = [t for pattern, t in rules if re.search(pattern, f"blk.{match[1]}.{tensor}.weight")]
            assert types == [wanted.lower()], (name, tensor)
        if name == "lm_head":
            assert given["--output-tensor-type"] == [wanted.lower()]
            assert given["--token-embedding-type"] == [wanted.lower()]
        assert match or name == "lm_head"
    types = {t for _, t in rules} | set(given["--output-tensor-type"])
    assert {t.upper() for t in types} <= {member.name for member in gguf.GGMLQuantizationType}


def test_gguf_names_are_those_of_the_gguf_package():
    from codesign.plan.recipes.llama_cpp import EXPERT_TENSORS, TENSORS

    known = {name.rpartition(".")[2] for name in gguf.TENSOR_NAMES.values()}
    assert {name for names in TENSORS.values() for name in names} | set(EXPERT_TENSORS) <= known


def torchao_reader(recipe):
    rules = json.loads(recipe)["_data"]["fqn_to_config"]
    return lambda name: next((c for key, c in rules.items() if re.fullmatch(key.removeprefix("re:"), name)), None)


def same_as_torchao(found, scheme):
    names = {"w4a16": "Int4WeightOnlyConfig", "w8a16": "Int8WeightOnlyConfig",
             "w8a8": "Int8DynamicActivationInt8WeightConfig",
             "fp8": "Float8DynamicActivationFloat8WeightConfig"}  # fmt: skip
    data = found["_data"]
    size = data.get("group_size")
    if scheme.family == "w8a16":
        size = data["granularity"]["_data"].get("group_size")
    return found["_type"] == names[scheme.family] and size == group_size(scheme)


@pytest.mark.parametrize("model", MODELS)
def test_torchao(model):
    pool = ("BF16", "W4A16-g128", "W4A16-g32", "W8A16", "W8A8", "FP8-channel")
    plan = shuffled(planned(model, "h100", "torch"), "torchao", pool, 8)
    check(plan, torchao_reader(text_of(plan, "torchao")), same_as_torchao)


def mlx_reader(recipe, monkeypatch):
    """Run the script with a stand-in for mlx_lm, and return its predicate under the names that MLX uses."""
    given = {}
    monkeypatch.setitem(sys.modules, "mlx_lm", SimpleNamespace(convert=lambda *_, **named: given.update(named)))
    exec(compile(recipe, "recipe.py", "exec"), {})
    assert given["quantize"] is True

    def read(name):
        return given["quant_predicate"](re.sub(r"experts\.\d+\.", "switch_mlp.", name), None) or None

    return read


def same_as_mlx(found, scheme):
    mode = "mxfp4" if scheme.name == "MXFP4-A16" else "affine"
    return (found["bits"], found["group_size"], found["mode"]) == (scheme.weights.bits, group_size(scheme), mode)


@pytest.mark.parametrize("model", MODELS)
def test_mlx(model, monkeypatch):
    pool = ("BF16", "W4A16-g64", "W4A16-g32", "W8A16-g64", "MXFP4-A16")
    plan = shuffled(planned(model, "a100", "vllm"), "mlx", pool, 9)
    check(plan, mlx_reader(text_of(plan, "mlx"), monkeypatch), same_as_mlx)


@pytest.mark.parametrize("seed", range(8))
def test_any_mix_comes_back(seed):
    plan = shuffled(planned("qwen3-32b", "h100", "vllm"), "llm-compressor", LLM_COMPRESSOR, seed)
    check(plan, compressed_tensors_reader(text_of(plan, "llm-compressor")), same_as_compressed_tensors)


UNIFORM = [
    ("llm-compressor", "h100", "vllm", "W4A16-g128", compressed_tensors_reader, same_as_compressed_tensors),
    ("modelopt", "h100", "vllm", "FP8", modelopt_reader, same_as_modelopt),
    ("gptqmodel", "a100", "vllm", "W4A16-g128", gptqmodel_reader, same_as_gptqmodel),
    ("torchao", "a100", "torch", "W4A16-g64", torchao_reader, same_as_torchao),
]


@pytest.mark.parametrize(("tool", "hardware", "library", "scheme", "reader", "same"), UNIFORM)
@pytest.mark.parametrize("model", ["mixtral-8x7b", "deepseek-v2-lite"])
def test_one_scheme_everywhere_comes_back(model, tool, hardware, library, scheme, reader, same):
    plan = shuffled(planned(model, hardware, library), tool, (scheme,), 0)
    check(plan, reader(text_of(plan, tool)), same)


def test_one_pattern_per_set_of_blocks():
    """A plan that gives all blocks the same takes one pattern for all modules of a scheme."""
    plan = shuffled(planned("llama-3.1-8b", "a100", "vllm"), "llm-compressor", ("W4A16-g128",), 0)
    recipe = yaml.safe_load(text_of(plan, "llm-compressor"))
    groups = recipe["quant_stage"]["quant_modifiers"]["GPTQModifier"]["config_groups"]
    assert [len(group["targets"]) for group in groups.values()] == [1]
    assert "[0-9]+" in groups["group_0"]["targets"][0]


def test_every_name_is_one_of_the_model():
    model = load_model("llama-3.1-8b")
    assert len(module_names(planned("llama-3.1-8b", "a100", "vllm"))) == 7 * len(model.blocks) + 1
