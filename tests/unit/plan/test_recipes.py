"""What tools refuse, what is promoted and at what cost, and the lines that serve a plan."""

import ast
import json
import re
import shlex
from dataclasses import replace

import pytest
import yaml
from planned import inputs_of, planned, shuffled

from codesign.errors import InputError
from codesign.model.groups import fused_groups
from codesign.plan.file import Plan
from codesign.plan.recipes.legality import Choice, wider_scheme
from codesign.plan.recipes.make import Inputs, make_bench, make_recipe, promotion_remarks
from codesign.plan.recipes.patterns import glob_numbers
from codesign.plan.recipes.registry import TOOLS, find_tool
from codesign.schemes.catalog import SCHEMES, parse_scheme
from codesign.schemes.kv import KV_FORMATS


def uniform(plan: Plan, scheme: str, method: str = "rtn") -> Plan:
    """Return the plan with this scheme in every group of the blocks but the routers."""
    groups = tuple(
        replace(one, scheme=scheme, method=method) if one.block_index is not None and "router" not in one.name else one
        for one in plan.groups
    )
    return replace(plan, groups=groups)


def refusal(plan: Plan, tool: str) -> str:
    with pytest.raises(InputError) as caught:
        make_recipe(inputs_of(plan), find_tool(tool))
    return str(caught.value)


NOTHING_LEFT = {("modelopt", "x86-avx512")}
LLAMA = ("llama-3.1-8b", "a100", "vllm")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("case", [LLAMA, ("qwen3-32b", "h100", "vllm"), ("mixtral-8x7b", "h100", "vllm"),
                                  ("gpt-oss-20b", "h100", "vllm"), ("llama-3.1-8b", "x86-avx512", "llama.cpp"),
                                  ("llama-3.1-8b", "b200", "trtllm"), ("llama-2-13b", "t4", "vllm")])  # fmt: skip
def test_every_tool_names_its_version_and_writes_or_says_why_not(tool, case):
    """With --promote a recipe comes out of every plan, unless nothing would be left to make."""
    inputs = inputs_of(planned(*case))
    if (tool, case[1]) in NOTHING_LEFT:
        with pytest.raises(InputError, match="nothing to make"):
            make_recipe(inputs, find_tool(tool), promote=True)
        return
    recipe = make_recipe(inputs, find_tool(tool), promote=True)
    assert TOOLS[tool].version in recipe.text
    assert inputs.plan.model in recipe.text
    bench = make_bench(inputs, find_tool(tool))
    for change in recipe.promotions:
        wider, before = parse_scheme(change.promoted), parse_scheme(change.planned)
        assert wider.bits_per_weight > before.bits_per_weight - 0.01
        group = next(group for group in fused_groups(inputs.model) if group.label == change.label)
        assert bench.problem(group, wider, "") is None or not wider.quantized


def test_mixed_bits_are_nothing_for_awq():
    plan = shuffled(planned(*LLAMA), "gptqmodel", ("W4A16-g128-asym", "W4A16-g32-asym"), 1, "awq")
    assert "AWQ checkpoints hold one scheme, not W4A16-g" in refusal(plan, "gptqmodel")
    recipe = make_recipe(inputs_of(plan), find_tool("gptqmodel"), promote=True)
    assert {change.promoted for change in recipe.promotions} == {"W4A16-g32-asym"}


def test_awq_of_8_bits_is_refused():
    assert "AWQ checkpoints hold 4 bits with zero points" in refusal(
        uniform(planned(*LLAMA), "W8A16-g128", "awq"), "gptqmodel"
    )


def test_a_scheme_that_the_gpu_lacks_is_refused_with_its_reason():
    plan = uniform(planned(*LLAMA), "W4A8-g128")
    assert "W4A8-g128: vLLM multiplies int4 weights with int8 activations on Arm CPUs only" in refusal(plan, "vllm")


def test_a_torn_group_is_refused_or_takes_its_widest_part():
    plan = planned(*LLAMA)
    first, *rest = plan.groups
    assert first.name == "qkv"
    torn = [replace(first, name=name, scheme=s) for name, s in (("q", "W4A16-g128"), ("k", "W8A16"), ("v", "W8A16"))]
    plan = replace(plan, groups=(*torn, *rest))
    assert "0.qkv is multiplied as one, and the plan tears it apart" in refusal(plan, "vllm")
    recipe = make_recipe(inputs_of(plan), find_tool("vllm"), promote=True)
    assert [(one.label, one.promoted) for one in recipe.promotions] == [("0.qkv", "W8A16")]


def test_groups_of_another_model_are_refused():
    plan = planned(*LLAMA)
    assert "which the model has not" in refusal(
        replace(plan, groups=(*plan.groups, replace(plan.groups[0], block_index=99))), "vllm"
    )
    assert "no scheme for the group 0.qkv" in refusal(replace(plan, groups=plan.groups[1:]), "vllm")
    assert "names the group 0.qkv twice" in refusal(replace(plan, groups=(plan.groups[0], *plan.groups)), "vllm")


def test_a_k_that_the_group_does_not_divide_is_refused():
    """SmolLM2-135M has 576 inputs: no groups of 128, and no super-blocks of 256."""
    plan = uniform(planned("smollm2-135m", "a100", "vllm"), "W4A16-g128")
    assert "k = 576 is not a multiple" in refusal(plan, "vllm")
    plan = uniform(planned("smollm2-135m", "x86-avx512", "llama.cpp"), "Q4_K")
    assert "blocks of 256 values, and k = 576" in refusal(plan, "llama.cpp")
    recipe = make_recipe(inputs_of(plan), find_tool("llama.cpp"), promote=True)
    assert {change.promoted for change in recipe.promotions} == {"Q4_0"}


def test_shards_off_alignment_are_refused():
    """Llama-2-7B's down_proj has 11008 inputs: 2752 per GPU of four are 21.5 groups of 128."""
    plan = replace(uniform(planned("llama-2-7b", "a100", "vllm"), "W4A16-g128"), gpu_count=4)
    assert "0.down in W4A16-g128: W4A16-g128 has one scale per 128 values along k, and k = 2752" in refusal(
        plan, "llm-compressor"
    )
    assert make_recipe(inputs_of(replace(plan, gpu_count=2)), find_tool("llm-compressor")).promotions == ()
    assert "32 attention heads of llama-2-7b do not divide over 3 devices" in refusal(
        replace(plan, gpu_count=3), "vllm"
    )


def test_blocks_of_fp8_end_where_shards_do():
    plan = replace(uniform(planned("llama-2-7b", "h100", "vllm"), "FP8-block"), gpu_count=4)
    assert "one scale per 128 outputs, and a shard of model.layers.0.mlp.gate_proj has 2752" in refusal(plan, "vllm")


def test_kv_heads_are_repeated_not_divided():
    """Eight KV heads of 128 over 16 GPUs: each has one whole head."""
    plan = replace(uniform(planned("llama-3.1-8b", "h100", "vllm"), "FP8-block"), gpu_count=16)
    recipe = make_recipe(inputs_of(plan), find_tool("vllm"), promote=True)
    assert "qkv" not in {change.label.partition(".")[2] for change in recipe.promotions}


def test_the_cost_of_a_promotion_is_shown():
    plan = uniform(planned(*LLAMA), "W4A16-g32")
    recipe = make_recipe(inputs_of(plan), find_tool("trtllm"), promote=True)
    assert {change.promoted for change in recipe.promotions} == {"W8A16"}
    assert any(text.startswith("That takes the weights from ") and "ms" in text for text in recipe.remarks)
    assert all(remark in recipe.text for remark in recipe.remarks)


def test_equal_promotions_are_told_once():
    plan = uniform(planned(*LLAMA), "W4A16-g32")
    recipe = make_recipe(inputs_of(plan), find_tool("trtllm"), promote=True)
    assert len(recipe.promotions) == 4 * 32
    told = promotion_remarks(recipe.promotions)
    assert len(told) == 4
    assert "0.qkv to 31.qkv (32 groups) from W4A16-g32 to W8A16" in told[0]


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.quantized])
def test_the_wider_scheme_is_never_narrower(name):
    inputs = inputs_of(planned(*LLAMA))
    bench = make_bench(inputs, find_tool("llm-compressor"))
    for group in fused_groups(inputs.model)[:4]:
        planned_scheme = parse_scheme(name)
        wider = wider_scheme(bench, Choice(group, planned_scheme, "rtn"))
        assert wider.weights.bits >= planned_scheme.weights.bits
        assert wider.bits_per_weight > planned_scheme.bits_per_weight - 0.01


def test_a_plan_of_16_bits_is_served_but_not_made():
    plan = replace(planned(*LLAMA), kv="bf16", model="llama-3.1-8b")
    plan = replace(plan, groups=tuple(replace(one, scheme="BF16", method="") for one in plan.groups))
    assert "nothing to make" in refusal(plan, "llm-compressor")
    text = make_recipe(inputs_of(plan), find_tool("vllm")).text
    assert "vllm serve meta-llama/Llama-3.1-8B " in text
    assert "--quantization" not in text


LACKING = {
    "vllm": {"int8", "int4", "q8_0", "q4_0"},
    "sglang": {"int8", "int4", "q8_0", "q4_0"},
    "trtllm": {"fp8_e5m2", "int8", "int4", "q8_0", "q4_0"},
    "llama.cpp": {"fp8", "fp8_e5m2", "int8", "int4"},
    "llm-compressor": {"int8", "int4", "q8_0", "q4_0"},
    "mlx": {"fp8", "fp8_e5m2", "int8", "int4", "q8_0", "q4_0"},
}


@pytest.mark.parametrize("kv", KV_FORMATS)
@pytest.mark.parametrize("tool", LACKING)
def test_kv_formats_that_a_tool_lacks_are_refused_or_widened(tool, kv):
    plan = planned("llama-3.1-8b", "h100", "llama.cpp" if tool == "llama.cpp" else "vllm")
    plan = replace(uniform(plan, "Q8_0" if tool == "llama.cpp" else "W4A16-g128"), kv=kv)
    if tool == "llama.cpp":
        plan = replace(plan, groups=(*plan.groups[:-1], replace(plan.groups[-1], scheme="Q8_0")))
    if kv not in LACKING[tool]:
        assert make_recipe(inputs_of(plan), find_tool(tool)).promotions == ()
        return
    assert "KV cache" in refusal(plan, tool)
    remarks = make_recipe(inputs_of(plan), find_tool(tool), promote=True).remarks
    told = next(text for text in remarks if "the KV cache from" in text)
    wider = told.split(" to ")[1].split(":")[0]
    assert KV_FORMATS[wider].bits >= KV_FORMATS[kv].bits
    assert wider not in LACKING[tool]


SERVING = [
    ("vllm", ("vllm serve ", "--max-model-len 3072", "--max-num-seqs 8", "--tensor-parallel-size 2",
              "--kv-cache-dtype fp8_e4m3", "--dtype bfloat16")),
    ("sglang", ("python -m sglang.launch_server", "--context-length 3072", "--max-running-requests 8", "--tp-size 2",
                "--kv-cache-dtype fp8_e4m3")),
    ("trtllm", ("trtllm-serve ", "--max_seq_len 3072", "--max_batch_size 8", "--tp_size 2", "kv_cache_config:",
                "  dtype: fp8")),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "words"), SERVING)
def test_serving_lines(tool, words):
    library = "trtllm" if tool == "trtllm" else "vllm"
    plan = planned("llama-3.1-8b", "h100", library, kv="fp8", batch=8, prompt_tokens=2048, output_tokens=1024,
                   gpu_count=2)  # fmt: skip
    text = make_recipe(inputs_of(plan), find_tool(tool), promote=True).text
    for word in words:
        assert word in text


def test_llama_server_shares_its_context_among_slots():
    plan = planned("llama-3.1-8b", "h100", "llama.cpp", kv="q8_0", batch=4, prompt_tokens=512, output_tokens=512)
    text = make_recipe(inputs_of(plan), find_tool("llama.cpp")).text
    for word in ("-c 4096", "-np 4", "--cache-type-k q8_0", "--cache-type-v q8_0", "-fa on", "-ngl 99"):
        assert word in text
    on_cpu = make_recipe(inputs_of(planned("llama-3.1-8b", "x86-avx512", "llama.cpp", thread_count=2)),
                         find_tool("llama.cpp")).text  # fmt: skip
    assert "-ngl" not in on_cpu
    assert "-t 2" in on_cpu


def test_expert_parallelism():
    plan = planned("mixtral-8x7b", "h100", "vllm", gpu_count=4, expert_parallel=4)
    assert "--enable-expert-parallel" in make_recipe(inputs_of(plan), find_tool("vllm")).text
    assert "--ep-size 4" in make_recipe(inputs_of(plan), find_tool("sglang"), promote=True).text
    assert "not over 2" in refusal(replace(plan, expert_parallel=2), "vllm")
    assert "every expert over all" in refusal(replace(uniform(plan, "Q8_0"), expert_parallel=2), "llama.cpp")


def test_a_t4_serves_in_float16():
    text = make_recipe(inputs_of(planned("llama-2-13b", "t4", "vllm")), find_tool("vllm")).text
    assert "--dtype float16" in text


def test_gguf_and_nf4_in_vllm():
    text = make_recipe(inputs_of(uniform(planned(*LLAMA), "NF4")), find_tool("vllm")).text
    assert "vllm serve meta-llama/Llama-3.1-8B " in text
    assert "--quantization bitsandbytes" in text
    text = make_recipe(inputs_of(uniform(planned(*LLAMA), "NF4")), find_tool("sglang")).text
    assert "--load-format bitsandbytes" in text
    text = make_recipe(inputs_of(uniform(planned(*LLAMA), "Q4_K")), find_tool("vllm")).text
    assert ".gguf " in text
    assert "--tokenizer meta-llama/Llama-3.1-8B" in text
    mixed = shuffled(planned(*LLAMA), "vllm", ("NF4", "W4A16-g128"), 3)
    assert "do not go into one checkpoint" in refusal(mixed, "vllm")
    assert "bitsandbytes takes every linear layer" in refusal(
        shuffled(planned(*LLAMA), "vllm", ("NF4", "BF16"), 3), "vllm"
    )


HOSTILE = "x\n$(touch pwned); `id` 'a' \"b\" \u202e #"


@pytest.mark.parametrize("tool", TOOLS)
def test_names_of_a_hostile_plan_stay_names(tool):
    """Neither the plan's names nor the path of the weights become commands, code or lines of their own."""
    honest, plan = planned(*LLAMA), replace(planned(*LLAMA), model=HOSTILE, codesign_version=HOSTILE)
    recipe = make_recipe(replace_source(replace(inputs_of(honest), plan=plan), HOSTILE), find_tool(tool), promote=True)
    if tool in ("gptqmodel", "torchao"):
        json.loads(recipe.text)
    elif tool in ("modelopt", "mlx"):
        strings = [node.value for node in ast.walk(ast.parse(recipe.text)) if isinstance(node, ast.Constant)]
        assert HOSTILE in strings
    elif tool == "llm-compressor":
        assert list(yaml.safe_load(recipe.text)) == ["quant_stage"]
    else:
        words = shlex.split(recipe.text, comments=True)
        assert all("touch" not in word or word == HOSTILE or re.fullmatch(r"[\w.-]+", word) for word in words)
        assert not any("touch" in line for line in recipe.text.replace(shlex.quote(HOSTILE), "").splitlines()
                       if "$(" in line and not line.startswith("#"))  # fmt: skip


def test_a_changed_model_is_told():
    plan = planned(*LLAMA)
    inputs = inputs_of(replace(plan, model_digest="other"))
    assert "The model is not the one that was planned for" in make_recipe(inputs, find_tool("vllm")).remarks[0]
    assert make_recipe(inputs_of(plan), find_tool("vllm")).remarks == ()


def test_the_source_is_the_folder_that_was_given():
    inputs = replace_source(inputs_of(planned(*LLAMA)), "./my model")
    assert "--model './my model'" in make_recipe(inputs, find_tool("autoround"), promote=True).text


def replace_source(inputs: Inputs, source: str) -> Inputs:
    return replace(inputs, source=source)


def test_unknown_tools():
    with pytest.raises(InputError, match='Did you mean "gptqmodel"'):
        find_tool("gptq-model")
    assert find_tool("AutoRound") is find_tool("auto-round")
    assert find_tool("llama.cpp").name == "llama.cpp"


@pytest.mark.parametrize(
    ("blocks", "count", "globs"),
    [((0, 1, 2), 3, ["*"]), ((0, 9, 10, 11, 31), 32, ["[09]", "1[01]", "31"]), ((5,), 6, ["5"])],
)
def test_globs_of_block_numbers(blocks, count, globs):
    assert glob_numbers(blocks, range(count)) == globs
