"""Every kind of quantized checkpoint met in the wild, tiny: the makers of its tensors, its config, its scheme."""

from collections.abc import Mapping
from typing import Any

from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import Maker

A8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
F8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
FP8_TOKENS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_STATIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
FP4_LOCAL = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}


def compressed(*groups: tuple[Any, Any, Any], **more: Any) -> dict[str, Any]:
    """Return a config of compressed-tensors from (targets, weights, input activations)."""
    named = {
        f"group_{i}": {"targets": list(targets), "weights": weights, "input_activations": inputs}
        for i, (targets, weights, inputs) in enumerate(groups)
    }
    return {"quant_method": "compressed-tensors", "config_groups": named, "ignore": ["lm_head"], **more}


def modelopt(algorithm: str, **more: Any) -> dict[str, Any]:
    quantization = {"quant_algo": algorithm, "exclude_modules": ["lm_head"], **more}
    return {"quant_method": "modelopt", "quantization": quantization}


def torchao(kind: str) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_version": 2, "_data": {}}}}


LINEAR = ("Linear",)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
KINDS: dict[str, tuple[Maker, Mapping[str, Any] | None, str]] = {
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
        tiny.packed(), compressed((LINEAR, W4, FP8_TOKENS)), "W4AFP8-g128",
    ),
    "W4A8 in static fp8": (tiny.modelopt_int4, modelopt("W4A8_AWQ"), "W4AFP8-g128-static"),
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
        "NF4-single",
    ),
    "fp4": (
        tiny.bitsandbytes("fp4"), {"load_in_4bit": True}, "BNB-FP4",
    ),
    "fp4 once": (tiny.bitsandbytes("fp4", double=False), {"load_in_4bit": True}, "BNB-FP4-single"),
    "LLM.int8": (
        tiny.llm_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "LLM.int8 (int8 per channel, outliers in 16 bits)",
    ),
    "hqq": (
        tiny.hqq, {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        "W4A16-g64-asym16",
    ),
    "torchao of before": (tiny.old_torchao, {"quant_method": "torchao", "quant_type": {}}, "torchao I8"),
    "torchao": (tiny.torchao, {"quant_method": "torchao", "quant_type": {}}, "torchao I8"),
    "torchao int8": (tiny.torchao, torchao("Int8WeightOnlyConfig"), "W8A16"),
    "torchao int8 activations": (tiny.torchao, torchao("Int8DynamicActivationInt8WeightConfig"), "W8A8"),
    "torchao int4": (tiny.torchao_int4(), torchao("Int4WeightOnlyConfig"), "W4A16-g128-asym16"),
    "torchao int4 in tiles": (tiny.torchao_int4(tiles=True), torchao("Int4WeightOnlyConfig"), "W4A16-g128-asym16"),
}  # fmt: skip
