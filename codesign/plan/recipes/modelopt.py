"""Scripts for NVIDIA's Model Optimizer: an ordered list of quantizer wildcards, calibrated and exported.

Source: nvidia-modelopt 0.47, torch/quantization/config.py (entries of `quant_cfg`, applied in order, later ones win),
torch/quantization/conversion.py (`fnmatch` on quantizer names, fused experts without their index) and the presets in
modelopt_recipes/configs/ptq/presets (numbers of each format, default exclusions, *[kv]_bmm_quantizer).
"""

from typing import Any

from codesign.plan.recipes.modules import PlannedModule
from codesign.plan.recipes.patterns import by_scheme, module_globs
from codesign.plan.recipes.tool import Export, Tool, header
from codesign.schemes.scheme import PerGroup, Scheme

Quantizer = dict[str, Any]
_FP8: Quantizer = {"num_bits": (4, 3), "axis": None}
_INT8_CHANNEL: Quantizer = {"num_bits": 8, "axis": 0}


def _blocks(number: tuple[int, int], size: int, scales: tuple[int, int]) -> Quantizer:
    return {"num_bits": number, "block_sizes": {-1: size, "type": "dynamic", "scale_bits": scales}}


_NVFP4, _MXFP4, _MXFP8 = _blocks((2, 1), 16, (4, 3)), _blocks((2, 1), 32, (8, 0)), _blocks((4, 3), 32, (8, 0))
# Weight and input quantizer of each scheme; None leaves the input in 16 bits.
QUANTIZERS: dict[str, tuple[Quantizer, Quantizer | None]] = {
    "FP8": (_FP8, _FP8),
    "FP8-channel": (
        {"num_bits": (4, 3), "axis": 0},
        {"num_bits": (4, 3), "type": "dynamic", "block_sizes": {-1: None}},
    ),
    "NVFP4": (_NVFP4, _NVFP4),
    "NVFP4-A16": (_NVFP4, None),
    "MXFP8": (_MXFP8, _MXFP8),
    "MXFP4": (_MXFP4, _MXFP4),
    "MXFP4-A16": (_MXFP4, None),
    "W8A8-static": (_INT8_CHANNEL, {"num_bits": 8, "axis": None}),
    "W8A16": (_INT8_CHANNEL, None),
}
_ALGORITHMS: dict[str, dict[str, Any]] = {
    "awq": {"method": "awq_lite", "alpha_step": 0.1},
    "gptq": {"method": "gptq"},
    "smoothquant": {"method": "smoothquant", "alpha": 1.0},
}


def problem(scheme: Scheme, _method: str) -> str | None:
    """Return why Model Optimizer exports no such checkpoint."""
    if quantizers(scheme) is not None:
        return None
    return f"Model Optimizer exports no {scheme}; it exports {', '.join(QUANTIZERS)} and symmetric 4 bits in groups."


def quantizers(scheme: Scheme) -> tuple[Quantizer, Quantizer | None] | None:
    """Return the attributes of weight and input quantizer."""
    match scheme.weights.granularity:
        case PerGroup(size) if scheme.family == "w4a16" and scheme.weights.symmetric:
            return {"num_bits": 4, "block_sizes": {-1: size, "type": "static"}}, None
    return QUANTIZERS.get(scheme.name)


def write(export: Export) -> str:
    """Return the script that quantizes and exports the model."""
    rows = "".join(f"        {entry!r},\n" for entry in entries(export))
    return (
        header(export, TOOL.written_for)
        + '"""Run: pip install nvidia-modelopt[hf] && python FILE"""\n'
        + _IMPORTS
        + f"\nMODEL, OUTPUT = {export.source!r}, {export.output!r}\n"
        + f'CONFIG = {{\n    "quant_cfg": [\n{rows}    ],\n    "algorithm": {_algorithm(export.modules)!r},\n}}\n'
        + _SCRIPT
    )


def entries(export: Export) -> list[dict[str, Any]]:
    """Return the list of wildcards: nothing, then every planned module, then the cache."""
    found: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for members in by_scheme(export.modules).values():
        pair = quantizers(members[0].scheme)
        if pair is None:
            raise AssertionError(f"{members[0].scheme} passed `problem`")
        for glob in module_globs(members, export.modules):
            for part, attributes in zip(("weight", "input"), pair, strict=True):
                if attributes is not None:
                    found.append({"quantizer_name": f"{glob}.*{part}_quantizer", "cfg": dict(attributes)})
    if export.kv.name == "fp8":
        found.append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}})
    return found


def _algorithm(modules: tuple[PlannedModule, ...]) -> str | dict[str, Any]:
    """Return the calibration, which is one for the whole model: the plan's method if it has one, else plain maxima."""
    methods = {module.method for module in modules if module.scheme.quantized}
    return _ALGORITHMS.get(methods.pop(), "max") if len(methods) == 1 else "max"


_IMPORTS = """import torch
import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.utils.dataset_utils import create_forward_loop, get_dataset_dataloader
from transformers import AutoModelForCausalLM, AutoTokenizer
"""
_SCRIPT = """
if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", device_map="auto")
    data = get_dataset_dataloader("cnn_dailymail", tokenizer=tokenizer, num_samples=512, device=model.device)
    model = mtq.quantize(model, CONFIG, create_forward_loop(dataloader=data))
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=OUTPUT)
    tokenizer.save_pretrained(OUTPUT)
"""

TOOL = Tool(
    name="modelopt",
    title="Model Optimizer",
    version="0.47",
    source="nvidia-modelopt, torch/quantization/config.py",
    libraries=("trtllm", "vllm", "sglang"),
    write=write,
    problem=problem,
    kv_names={"bf16": "", "fp16": "", "fp8": "fp8"},
)
