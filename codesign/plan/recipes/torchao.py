r"""`FqnToConfig` of torchao as JSON, one config per set of modules.

Source: torchao 0.18, core/config.py (config_from_dict: `_type`, `_version`, `_data`; other keys are ignored) and
quantization/quant_api.py: keys `re:...` of FqnToConfig match a module's name in full, the first that matches wins,
what nothing matches stays as it is; Transformers takes it as `TorchAoConfig(quant_type=...)`.
"""

from typing import Any

from codesign.files import to_json
from codesign.hardware.hardware import Hardware
from codesign.plan.recipes.patterns import by_scheme, module_patterns
from codesign.plan.recipes.tool import Export, Tool, remarks
from codesign.quality.methods import group_size_of
from codesign.schemes.scheme import Scheme

Config = dict[str, Any]
INT4_GROUPS = (32, 64, 128, 256)
USAGE = (
    "torchao: quantize_(model, config_from_dict(json.load(open(FILE))), filter_fn=None)",
    "Transformers: TorchAoConfig(quant_type=config_from_dict(...), include_input_output_embeddings=True); without the "
    "second argument it leaves lm_head in 16 bits",
)


def _typed(name: str, version: int = 1, **data: Any) -> Config:
    return {"_type": name, "_version": version, "_data": data}


def _dtype(name: str) -> Config:
    return {"_type": "torch.dtype", "_data": name}


_PER_ROW = _typed("PerRow", dim=-1)


def config(scheme: Scheme) -> Config | None:
    """Return torchao's config of a scheme, None if it has none."""
    size = group_size_of(scheme)
    fixed = {
        "W8A8": _typed("Int8DynamicActivationInt8WeightConfig", 2, granularity=_PER_ROW),
        "FP8-channel": _typed("Float8DynamicActivationFloat8WeightConfig", 2, granularity=[_PER_ROW, _PER_ROW]),
        "NVFP4": _typed("NVFP4DynamicActivationNVFP4WeightConfig"),
        "NVFP4-A16": _typed("NVFP4WeightOnlyConfig"),
        "MXFP8": _mx("float8_e4m3fn"),
        "MXFP4": _mx("float4_e2m1fn_x2"),
    }
    if scheme.family == "w4a16" and size in INT4_GROUPS:
        packing = {"_type": "Int4PackingFormat", "_data": "TILE_PACKED_TO_4D"}
        return _typed("Int4WeightOnlyConfig", 2, group_size=size, int4_packing_format=packing)
    if scheme.family == "w8a16" and scheme.weights.symmetric:
        rows = _typed("PerGroup", group_size=size) if size else _PER_ROW
        return _typed("Int8WeightOnlyConfig", 2, granularity=rows)
    if scheme.family == "w4a8":
        rows = _typed("PerGroup", group_size=size) if size else _typed("PerAxis", axis=0)
        return _typed("Int8DynamicActivationIntxWeightConfig", 2, weight_dtype=_dtype("int4"), weight_granularity=rows)
    return fixed.get(scheme.name)


def _mx(dtype: str) -> Config:
    return _typed(
        "MXDynamicActivationMXWeightConfig", block_size=32, activation_dtype=_dtype(dtype), weight_dtype=_dtype(dtype)
    )


def problem(scheme: Scheme, _method: str) -> str | None:
    """Return why torchao has no config for the scheme."""
    return None if config(scheme) else f"torchao has no config for {scheme}."


def machine_problem(scheme: Scheme, hardware: Hardware) -> str | None:
    """Return why torchao's config cannot make the scheme on this machine."""
    if hardware.kind == "cpu" and scheme.family == "w4a16":
        return f"torchao packs {scheme} for GPUs only; its packing for CPUs is a prototype that JSON cannot name."
    return None


def write(export: Export) -> str:
    """Return the config as JSON, with a comment beside it that torchao ignores."""
    keys: dict[str, Config] = {}
    for members in by_scheme(export.modules).values():
        found = config(members[0].scheme)
        quantized = [module for module in members if module.role != "embedding"]
        keys |= {f"re:{pattern}": dict(found or {}) for pattern in module_patterns(quantized, export.modules)}
    comments = [*remarks(export, TOOL.written_for), *USAGE]
    return to_json({"_comment": comments, **_typed("FqnToConfig", fqn_to_config=keys)})


TOOL = Tool(
    name="torchao",
    title="torchao",
    version="0.18",
    source="torchao docs, FqnToConfig",
    libraries=("torch", "torchao", "vllm"),
    write=write,
    problem=problem,
    machine_problem=machine_problem,
)
