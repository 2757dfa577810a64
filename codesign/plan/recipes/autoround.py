"""`auto-round` command lines with a `--layer_config` for what differs from the commonest scheme.

Source: auto-round 0.16, cli/parser.py (flags), utils/common.py: `--layer_config` is JSON whose keys are regular
expressions that are searched for, with bare dots taken literally (to_standard_regex); schemes.py (keys of a scheme);
export formats auto_round (weight-only integers) and llm_compressor (formats with activations).
"""

import json
from typing import Any

from codesign.plan.recipes.modules import PlannedModule
from codesign.plan.recipes.patterns import by_scheme, module_patterns
from codesign.plan.recipes.shell import Option, command
from codesign.plan.recipes.tool import Export, Tool, header
from codesign.quality.methods import group_size_of
from codesign.schemes.scheme import Scheme

# Keys of the presets of that name in schemes.py.
WITH_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "W8A8": {"bits": 8, "group_size": -1, "data_type": "int", "sym": True, "act_bits": 8, "act_group_size": -1,
             "act_data_type": "int", "act_dynamic": True, "act_sym": True},
    "FP8-block": {"bits": 8, "group_size": [128, 128], "data_type": "fp", "act_bits": 8, "act_group_size": 128,
                  "act_data_type": "fp", "act_dynamic": True, "act_sym": True},
    "NVFP4": {"bits": 4, "group_size": 16, "data_type": "nv_fp", "act_bits": 4, "act_group_size": 16,
              "act_data_type": "nv_fp4_with_static_gs", "act_dynamic": True, "act_sym": True},
    "MXFP4": {"bits": 4, "group_size": 32, "data_type": "mx_fp", "act_bits": 4, "act_group_size": 32,
              "act_data_type": "mx_fp", "act_dynamic": True, "act_sym": True},
    "MXFP8": {"bits": 8, "group_size": 32, "data_type": "mx_fp", "act_bits": 8, "act_group_size": 32,
              "act_data_type": "mx_fp", "act_dynamic": True, "act_sym": True},
}  # fmt: skip
PRESETS = {"W8A8": "INT8", "FP8-block": "FP8_BLOCK", "NVFP4": "NVFP4", "MXFP4": "MXFP4", "MXFP8": "MXFP8"}
_SIXTEEN_BITS = {"bits": 16, "data_type": "fp", "act_bits": 16, "act_data_type": "fp"}


def problem(scheme: Scheme, _method: str) -> str | None:
    """Return why AutoRound makes no such scheme, or makes it in a form that no runtime reads."""
    if scheme.weight_only and scheme.family.startswith("w"):
        if not 2 <= scheme.weights.bits <= 8:
            return f"AutoRound rounds to 2 to 8 bits, not those of {scheme}."
        if scheme.weights.bits == 8 and not scheme.weights.symmetric:
            return f"AutoRound keeps 8-bit weights symmetric, unlike {scheme} (compressors/layer_config_resolver.py)."
        return None
    if scheme.name in WITH_ACTIVATIONS:
        return None
    return f"AutoRound has no {scheme}; it has weight-only integers and {', '.join(WITH_ACTIVATIONS)}."


def whole_problem(modules: tuple[PlannedModule, ...]) -> str | None:
    """Return why one checkpoint cannot hold these: weight-only and other schemes are exported in different formats."""
    names = list(by_scheme(modules))
    if {name in WITH_ACTIVATIONS for name in names} == {True, False}:
        return f"AutoRound exports weight-only integers and the rest in different formats, not {' and '.join(names)}."
    return None


def write(export: Export) -> str:
    """Return the command."""
    groups = list(by_scheme(export.modules).values())
    base = groups[0][0].scheme
    layers = layer_config(export, groups[1:])
    options: list[Option] = [
        ("--model", export.source),
        *_base_options(base),
        *([("--layer_config", json.dumps(layers))] if layers else []),
        ("--format", "llm_compressor" if base.name in WITH_ACTIVATIONS else "auto_round"),
        ("--output_dir", export.output),
    ]
    if any(module.role == "head" and module.scheme.quantized for module in export.modules):
        options.append(("--quant_lm_head",))
    if export.kv.name == "fp8":
        options.append(("--static_kv_dtype", "fp8"))
    return header(export, TOOL.written_for) + command("auto-round", options)


def _base_options(scheme: Scheme) -> list[Option]:
    if scheme.name in PRESETS:
        return [("--scheme", PRESETS[scheme.name])]
    options: list[Option] = [
        ("--scheme", f"W{int(scheme.weights.bits)}A16"),
        ("--group_size", str(group_size_of(scheme) or -1)),
    ]
    return options if scheme.weights.symmetric else [*options, ("--asym",)]


def layer_config(export: Export, others: list[list[PlannedModule]]) -> dict[str, dict[str, Any]]:
    """Return the overrides by pattern, whose dots are bare because AutoRound escapes them itself."""
    found: dict[str, dict[str, Any]] = {}
    for members in others:
        for pattern in module_patterns(members, export.modules):
            found[pattern.replace(r"\.", ".")] = arguments(members[0].scheme)
    kept = [m for m in export.modules if not m.scheme.quantized and m.role not in ("embedding", "head")]
    patterns = module_patterns(kept, export.modules)
    return found | {pattern.replace(r"\.", "."): dict(_SIXTEEN_BITS) for pattern in patterns}


def arguments(scheme: Scheme) -> dict[str, Any]:
    """Return the keys of a scheme."""
    if scheme.name in WITH_ACTIVATIONS:
        return dict(WITH_ACTIVATIONS[scheme.name])
    size = group_size_of(scheme) or -1
    return {"bits": int(scheme.weights.bits), "group_size": size, "sym": scheme.weights.symmetric, "data_type": "int"}


TOOL = Tool(
    name="autoround",
    title="AutoRound",
    version="0.16",
    source="auto-round docs, step_by_step.md",
    libraries=("vllm", "sglang"),
    write=write,
    problem=problem,
    whole_problem=whole_problem,
    kv_names={"bf16": "", "fp16": "", "fp8": "fp8", "fp8_e5m2": ""},
)
