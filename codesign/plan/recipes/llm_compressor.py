"""Recipes of llm-compressor: YAML of modifiers with one config group per scheme.

Source: llm-compressor 0.14 (modifiers/quantization/quantization/mixin.py, modifiers/gptq, modifiers/transform/awq and
smoothquant, recipe/recipe.py) and compressed-tensors 0.20 (quantization/quant_scheme.py for the arguments of the
presets, utils/match.py: a target `re:` matches from the start of a module's name).
"""

from collections.abc import Mapping
from typing import Any

import yaml

from codesign.plan.recipes.modules import PlannedModule
from codesign.plan.recipes.patterns import by_scheme, module_patterns
from codesign.plan.recipes.tool import Export, Tool, comment, header
from codesign.schemes.compressed_arguments import BLOCK_FLOATS, FP8_KV, activation_arguments, weight_arguments
from codesign.schemes.scheme import Scheme

# What carries out a quality method; modifiers that only scale come before the one that rounds.
MODIFIERS: Mapping[str, tuple[str, ...]] = {
    "rtn": ("QuantizationModifier",),
    "gptq": ("GPTQModifier",),
    "awq": ("AWQModifier", "QuantizationModifier"),
    "smoothquant": ("SmoothQuantModifier", "QuantizationModifier"),
    "autoround": ("AutoRoundModifier",),
}
ORDER = ("SmoothQuantModifier", "AWQModifier", "AutoRoundModifier", "GPTQModifier", "QuantizationModifier")
_TRANSFORMS: Mapping[str, dict[str, Any]] = {
    "SmoothQuantModifier": {"smoothing_strength": 0.8},
    "AWQModifier": {"duo_scaling": True},
}


def problem(scheme: Scheme, method: str) -> str | None:
    """Return why compressed-tensors has no such scheme, or llm-compressor no such method."""
    integer = scheme.weights.number.startswith("int") and scheme.family.startswith("w")
    if not (integer or scheme.family in ("fp8", *BLOCK_FLOATS)):
        return f"compressed-tensors has no {scheme}."
    if integer and scheme.weights.bits < 2:
        return f"compressed-tensors packs 2 to 8 bits, not those of {scheme}."
    if method and method not in MODIFIERS:
        return f"llm-compressor has no modifier for {method}; it has {', '.join(MODIFIERS)}."
    return None


def write(export: Export) -> str:
    """Return the recipe, with the call that carries it out as a comment."""
    parts: dict[str, dict[str, Any]] = {}
    for number, members in enumerate(by_scheme(export.modules).values()):
        method = members[0].method or "rtn"
        *transforms, rounder = MODIFIERS[method]
        for name in transforms:
            parts[name] = dict(_TRANSFORMS[name])
        groups = parts.setdefault(rounder, {"config_groups": {}})["config_groups"]
        groups[f"group_{number}"] = _config_group(members[0].scheme, members, export.modules)
    _finish(parts, export)
    ordered = {name: parts[name] for name in ORDER if name in parts}
    recipe = {"quant_stage": {"quant_modifiers": ordered}}
    return header(export, TOOL.written_for) + _call(export) + yaml.safe_dump(recipe, sort_keys=False, width=1000)


def _config_group(scheme: Scheme, members: list[PlannedModule], modules: tuple[PlannedModule, ...]) -> dict[str, Any]:
    group: dict[str, Any] = {
        "targets": [f"re:{pattern}" for pattern in module_patterns(members, modules)],
        "weights": weight_arguments(scheme),
    }
    activations = activation_arguments(scheme)
    return group | ({"input_activations": activations} if activations else {})


def _finish(parts: dict[str, dict[str, Any]], export: Export) -> None:
    """Add what stays in 16 bits and the scales of the cache; `parts` is changed."""
    kept = [module for module in export.modules if not module.scheme.quantized and module.role != "embedding"]
    rounders = [name for name in parts if name not in _TRANSFORMS] or ["QuantizationModifier"]
    for name in rounders:
        part = parts.setdefault(name, {"config_groups": {}})
        part["ignore"] = [f"re:{pattern}" for pattern in module_patterns(kept, export.modules)]
    if export.kv.name == "fp8":
        parts[rounders[-1]]["kv_cache_scheme"] = dict(FP8_KV)


def _call(export: Export) -> str:
    call = f'oneshot(model={export.source!r}, recipe="recipe.yaml", dataset="open_platypus",'
    rest = f'        num_calibration_samples=512, max_seq_length=2048, output_dir="{export.output}")'
    return comment("from llmcompressor import oneshot") + comment(call) + comment(rest)


TOOL = Tool(
    name="llm-compressor",
    title="llm-compressor",
    version="0.14 (compressed-tensors 0.20)",
    source="llm-compressor docs, guides/compression_schemes",
    libraries=("vllm", "sglang"),
    write=write,
    problem=problem,
    kv_names={"bf16": "", "fp16": "", "fp8": "fp8", "fp8_e5m2": ""},
)
