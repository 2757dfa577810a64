"""Checkpoints of bitsandbytes as transformers stores them: one kind of 4-bit floats, or LLM.int8, for all layers.

Source: transformers 5.23, integrations/bitsandbytes.py and BitsAndBytesConfig.
"""

from typing import Any

from codesign.quantize.export.contents import Contents
from codesign.quantize.export.format import Format, Tensors, by_scheme
from codesign.quantize.pack_bitsandbytes import to_bitsandbytes, to_llm_int8
from codesign.quantize.result import LayerHead, QuantizedLayer
from codesign.quantize.round import QuantizedWeight

_INT8 = "W8A8"


def _problem(head: LayerHead) -> str | None:
    if head.scheme.weights.flattened or head.scheme.name == _INT8:
        return None
    return f"bitsandbytes stores NF4, BNB-FP4 and {_INT8} (as LLM.int8 without outliers), not {head.scheme}."


def _whole_problem(contents: Contents) -> str | None:
    schemes = list(by_scheme(contents))
    if len(schemes) > 1:
        return f"bitsandbytes checkpoints hold one scheme, not {' and '.join(schemes)}. Use compressed-tensors to mix."
    return None


def _pack(layer: QuantizedLayer, contents: Contents) -> Tensors:
    assert isinstance(layer.weight, QuantizedWeight)
    if layer.scheme.name == _INT8:
        return to_llm_int8(layer.weight)
    return to_bitsandbytes(layer.weight, contents.dtype_name)


def _config(contents: Contents) -> dict[str, Any]:
    scheme = next(iter(contents.quantized.values())).scheme
    eight = scheme.name == _INT8
    head_name = contents.source.model.head.name
    skipped = list(contents.kept)
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": eight,
        "load_in_4bit": not eight,
        "llm_int8_threshold": 0.0,
        # An empty list would make transformers skip the head by habit.
        "llm_int8_skip_modules": skipped or [f"no {head_name}"],
        "bnb_4bit_quant_type": "nf4" if scheme.weights.number == "nf4" else "fp4",
        "bnb_4bit_use_double_quant": bool(scheme.weights.super_group_size),
        "bnb_4bit_compute_dtype": contents.dtype_name,
        "bnb_4bit_quant_storage": "uint8",
    }


BITSANDBYTES = Format("bitsandbytes", _problem, _pack, _config, merges=False, whole_problem=_whole_problem)
