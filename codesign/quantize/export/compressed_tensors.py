"""Checkpoints of compressed-tensors: one config group per scheme, layers named one by one.

Source: compressed-tensors 0.20, quantization/quant_config.py, utils/match.py (exact names come before patterns) and
quantization/lifecycle/initialize.py (names and shapes of the scales of inputs).
"""

from typing import Any

from codesign.errors import InputError
from codesign.quantize.activations import fixed_scale, input_divisor
from codesign.quantize.export.contents import Contents
from codesign.quantize.export.format import Format, Tensors, by_scheme, ragged_problem
from codesign.quantize.pack_compressed import compressed_format, to_compressed
from codesign.quantize.result import LayerHead, QuantizedLayer
from codesign.quantize.round import QuantizedWeight
from codesign.schemes.compressed_arguments import FP8_KV, activation_arguments, weight_arguments
from codesign.schemes.scheme import Scheme

_MIXED = "mixed-precision"


def _problem(head: LayerHead) -> str | None:
    try:
        compressed_format(head.scheme)
    except InputError as error:
        return str(error)
    if head.reordered:
        return "its groups are of columns that are not neighbours. Quantize without act-order, or use gptq."
    if _scales_inputs(head.scheme) and head.fixed is None:
        return (
            f"{head.scheme} stores a scale of the inputs, which was not calibrated. "
            "Quantize with a calibration text, or use a scheme with dynamic activations."
        )
    return ragged_problem(head)


def _scales_inputs(scheme: Scheme) -> bool:
    """Return whether a scale of the inputs is stored: of static activations, and above the scales of NVFP4's."""
    activations = scheme.activations
    return activations.granularity is not None and (not activations.dynamic or scheme.name == "NVFP4")


def _pack(layer: QuantizedLayer, contents: Contents) -> Tensors:
    assert isinstance(layer.weight, QuantizedWeight)
    tensors = dict(to_compressed(layer.weight))
    if _scales_inputs(layer.scheme) and layer.fixed is not None:
        if layer.scheme.name == "NVFP4":
            tensors["input_global_scale"] = input_divisor(layer.fixed)
        else:
            tensors["input_scale"] = fixed_scale(layer.scheme.activations, layer.fixed)
    return tensors


def _config(contents: Contents) -> dict[str, Any]:
    groups = by_scheme(contents)
    formats = {compressed_format(members[0].scheme) for members in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else _MIXED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": _group(members) for number, members in enumerate(groups.values())},
        "ignore": list(contents.kept),
        "kv_cache_scheme": dict(FP8_KV) if contents.extra else None,
    }


def _group(members: list[LayerHead]) -> dict[str, Any]:
    scheme = members[0].scheme
    return {
        "targets": [head.name for head in members],
        "weights": weight_arguments(scheme),
        "input_activations": activation_arguments(scheme),
        "format": compressed_format(scheme),
    }


COMPRESSED_TENSORS = Format("compressed-tensors", _problem, _pack, _config)
