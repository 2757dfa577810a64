"""The configs of torchao for our schemes.

Source: torchao 0.18, core/config.py (config_from_dict: `_type`, `_version`, `_data`) and quantization/quant_api.py.
"""

from typing import Any

from codesign.schemes.scheme import PerGroup, Scheme

Config = dict[str, Any]
INT4_GROUPS = (32, 64, 128, 256)


def typed(name: str, version: int = 1, **data: Any) -> Config:
    """Return a config as torchao writes it to JSON."""
    return {"_type": name, "_version": version, "_data": data}


def _dtype(name: str) -> Config:
    return {"_type": "torch.dtype", "_data": name}


_PER_ROW = typed("PerRow", dim=-1)


def torchao_config(scheme: Scheme) -> Config | None:
    """Return torchao's config of a scheme, None if it has none."""
    granularity = scheme.weights.granularity
    size = granularity.size if isinstance(granularity, PerGroup) else None
    fixed = {
        "W8A8": typed("Int8DynamicActivationInt8WeightConfig", 2, granularity=_PER_ROW),
        "FP8-channel": typed("Float8DynamicActivationFloat8WeightConfig", 2, granularity=[_PER_ROW, _PER_ROW]),
        "NVFP4": typed("NVFP4DynamicActivationNVFP4WeightConfig"),
        "NVFP4-A16": typed("NVFP4WeightOnlyConfig"),
        "MXFP8": _mx("float8_e4m3fn"),
        "MXFP4": _mx("float4_e2m1fn_x2"),
    }
    if scheme.family == "w4a16" and size in INT4_GROUPS:
        packing = {"_type": "Int4PackingFormat", "_data": "TILE_PACKED_TO_4D"}
        return typed("Int4WeightOnlyConfig", 2, group_size=size, int4_packing_format=packing)
    if scheme.family == "w8a16" and scheme.weights.symmetric:
        rows = typed("PerGroup", group_size=size) if size else _PER_ROW
        return typed("Int8WeightOnlyConfig", 2, granularity=rows)
    if scheme.family == "w4a8":
        rows = typed("PerGroup", group_size=size) if size else typed("PerAxis", axis=0)
        return typed("Int8DynamicActivationIntxWeightConfig", 2, weight_dtype=_dtype("int4"), weight_granularity=rows)
    return fixed.get(scheme.name)


def _mx(dtype: str) -> Config:
    return typed(
        "MXDynamicActivationMXWeightConfig", block_size=32, activation_dtype=_dtype(dtype), weight_dtype=_dtype(dtype)
    )
