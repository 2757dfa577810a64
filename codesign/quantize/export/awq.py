"""Checkpoints of AWQ for GEMM kernels: one scheme for all layers but those in 16 bits.

Source: casper-hansen/AutoAWQ, awq/models/_config.py and awq/modules/linear/gemm.py. Zero points are always stored, for
symmetric weights the middle of the range.
"""

from collections.abc import Mapping
from typing import Any

from codesign.quantize.export.contents import Contents
from codesign.quantize.export.format import Format, Tensors, by_scheme
from codesign.quantize.export.gptq import integer_problem
from codesign.quantize.pack_gptq import to_awq
from codesign.quantize.result import LayerHead, QuantizedLayer
from codesign.quantize.round import QuantizedWeight
from codesign.schemes.scheme import PerGroup

_COLUMNS = 8


def _problem(head: LayerHead) -> str | None:
    why = integer_problem(head, (4,), "AWQ")
    if why:
        return why
    if head.reordered:
        return "its groups are of columns that are not neighbours. Quantize without act-order, or use gptq."
    if head.shape[0] % _COLUMNS:
        return f"its {head.shape[0]} outputs do not fill words of {_COLUMNS}. Leave it in 16 bits."
    return None


def _whole_problem(contents: Contents) -> str | None:
    if contents.source.model.head.name in contents.quantized:
        return "AWQ checkpoints keep the head in 16 bits. Leave it out of the plan, or use compressed-tensors."
    schemes = list(by_scheme(contents))
    if len(schemes) > 1:
        return f"AWQ checkpoints hold one scheme, not {' and '.join(schemes)}. Use compressed-tensors or gptq to mix."
    return None


def _pack(layer: QuantizedLayer, contents: Contents) -> Tensors:
    assert isinstance(layer.weight, QuantizedWeight)
    return to_awq(layer.weight)


def _config(contents: Contents) -> dict[str, Any]:
    granularity = next(iter(contents.quantized.values())).scheme.weights.granularity
    kept = [name for name in contents.kept if name != contents.source.model.head.name]
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": granularity.size if isinstance(granularity, PerGroup) else -1,
        "zero_point": True,
        "modules_to_not_convert": kept or None,
    }


def _files(contents: Contents) -> Mapping[str, Any]:
    config = _config(contents)
    return {"quant_config.json": {"w_bit": 4, "q_group_size": config["group_size"], **config}}


AWQ = Format("awq", _problem, _pack, _config, whole_problem=_whole_problem, files=_files)
