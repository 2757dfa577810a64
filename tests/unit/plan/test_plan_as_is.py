"""A plan that states a checkpoint: its schemes, its bytes, and what it is exported as."""

from dataclasses import replace

import pytest

from codesign import api
from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.cost.as_is import as_is_assignment
from codesign.cost.deployment import deploy
from codesign.cost.inference import predict_inference
from codesign.errors import InputError
from codesign.model.groups import fused_groups
from codesign.plan.file import read_plan, write_plan
from codesign.plan.present import footnote, headline
from codesign.plan.recipes.make import Inputs, make_recipe
from codesign.plan.recipes.registry import find_tool
from codesign.setting import Setting
from tests import tiny_checkpoints as tiny
from tests.checkpoint_kinds import GPTQ, KINDS, compressed
from tests.tiny_checkpoints import GGUF_KEYS, gguf_llama, llama, write_folder, write_gguf

SETTING = Setting(prompt_tokens=64, output_tokens=32)


def stated(path, hardware="a100-sxm-80gb", setting=SETTING):
    machine, checkpoint = api.load_hardware(hardware), read_checkpoint(str(path))
    return machine, checkpoint, api.plan_as_is(machine, checkpoint, setting)


@pytest.fixture
def gptq(tmp_path):
    return write_folder(tmp_path / "tiny", llama(tiny.gptq()), GPTQ)


@pytest.fixture
def gguf(tmp_path):
    return write_gguf(tmp_path / "m.gguf", "llama", GGUF_KEYS, gguf_llama())


def test_groups_schemes_and_totals_are_the_checkpoints(gptq):
    machine, checkpoint, plan = stated(gptq)
    assert [(one.block_index, one.name) for one in plan.groups] == [g.key for g in fused_groups(checkpoint.model)]
    assert {one.scheme for one in plan.groups if one.name != "head"} == {"W4A16-g128"}
    assert (plan.groups[-1].name, plan.groups[-1].scheme) == ("head", "BF16")
    where = deploy(machine, checkpoint.model, SETTING)
    predicted = predict_inference(where, as_is_assignment(where, checkpoint).assignment)
    assert (plan.totals.tpot_s, plan.totals.memory) == (predicted.tpot_s, predicted.memory)
    assert plan.totals.memory.weight_bytes == checkpoint.tensor_bytes
    assert sum(one.memory_bytes for one in plan.groups) == checkpoint.tensor_bytes - checkpoint.other_bytes


def test_the_file_reads_back_and_says_that_nothing_was_chosen(gptq, tmp_path):
    plan = stated(gptq)[2]
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert "schemes as stored" in headline(plan)
    assert "optimal" not in footnote(plan)


def test_losses_are_those_of_the_checkpoints_method(tmp_path):
    maker, quantization, _ = KINDS["awq"]
    awq = stated(write_folder(tmp_path, llama(maker), quantization))[2]
    assert {one.method for one in awq.groups if one.name != "head"} == {"awq"}
    assert awq.loss_nats.value == pytest.approx(sum(one.loss_nats.value for one in awq.groups))
    plain = stated(write_folder(tmp_path, llama(tiny.bf16)))[2]
    assert (plain.loss_nats.value, {one.method for one in plain.groups}) == (0.0, {""})


def test_a_gguf_group_of_several_schemes_is_stated_layer_by_layer(gguf):
    _, checkpoint, plan = stated(gguf, "x86-avx512")
    found = {one.name: one.scheme for one in plan.groups}
    assert found == {
        "q": "Q4_K", "k": "Q4_K", "v": "Q6_K", "o": "Q4_K", "gate_up": "Q4_K", "down": "Q6_K", "head": "Q6_K",
    }  # fmt: skip
    weights = sum(layer.byte_count for layer in checkpoint.layers)
    assert sum(one.memory_bytes for one in plan.groups) == weights
    uniform = stated(write_gguf(gguf, "llama", GGUF_KEYS, gguf_llama(v_type="Q4_K")), "x86-avx512")[2]
    whole = next(one for one in uniform.groups if one.name == "qkv")
    parts = [one.loss_nats.value for one in plan.groups if one.name in ("q", "k")]
    assert sum(parts) == pytest.approx(whole.loss_nats.value * 3 / 4)  # q and k hold 384 of 512 rows


def recipe(path, hardware, tool):
    machine, checkpoint, plan = stated(path, hardware)
    return make_recipe(Inputs(plan, machine, checkpoint.model, str(path)), find_tool(tool))


def test_servers_serve_the_checkpoint_itself(gptq, gguf):
    assert f"vllm serve {gptq} " in recipe(gptq, "a100-sxm-80gb", "vllm").text
    served = recipe(gguf, "x86-avx512", "llama.cpp").text
    assert f"-m {gguf} " in served
    assert "llama-quantize" not in served


def test_a_plan_without_a_group_of_experts_is_refused_by_llama_cpp_too(tmp_path):
    keys = {**GGUF_KEYS, "expert_count": 4, "expert_used_count": 2}
    tensors = [
        *(one for one in gguf_llama(v_type="Q4_K") if ".ffn_" not in one[0]),
        ("blk.0.ffn_gate_inp.weight", (4, 256), "F32"),
        *((f"blk.0.ffn_{name}_exps.weight", (4, 512, 256), "Q4_K") for name in ("gate", "up")),
        ("blk.0.ffn_down_exps.weight", (4, 256, 512), "Q4_K"),
    ]
    path = write_gguf(tmp_path / "m.gguf", "llama", keys, tensors)
    machine, checkpoint, plan = stated(path, "x86-avx512")
    without = replace(plan, groups=tuple(one for one in plan.groups if one.name != "experts"))
    with pytest.raises(InputError, match=r"no scheme for the group 0\.experts"):
        make_recipe(Inputs(without, machine, checkpoint.model, str(path)), find_tool("llama.cpp"))
    assert (
        "llama-server" in make_recipe(Inputs(plan, machine, checkpoint.model, str(path)), find_tool("llama.cpp")).text
    )


def test_makers_say_that_they_need_other_weights(gptq, gguf):
    made = recipe(gptq, "a100-sxm-80gb", "llm-compressor")
    assert any("16-bit weights" in remark for remark in made.remarks)
    with pytest.raises(InputError, match=r"0\.qkv is multiplied as one"):
        recipe(gguf, "x86-avx512", "vllm")


def test_the_cache_of_the_checkpoint_is_stated(tmp_path):
    w4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    folder = write_folder(tmp_path, llama(tiny.packed()), compressed((("Linear",), w4, None), kv_cache_scheme=cache))
    assert stated(folder, "h100-sxm")[2].kv == "fp8"
