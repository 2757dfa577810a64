"""Checkpoints of torchao in safetensors files, as transformers 5 writes and reads them: no pickle.

Source: torchao 0.18, prototype/safetensors (tensors `_weight_qdata`, metadata per parameter) and transformers 5.23,
quantizers/quantizer_torchao.py. The metadata of all files are joined there, so that each names every tensor.
"""

import json
from collections.abc import Mapping
from typing import Any

from codesign.quantize.export.contents import Contents
from codesign.quantize.export.format import Format, Tensors, by_scheme, ragged_problem
from codesign.quantize.result import LayerHead, QuantizedLayer
from codesign.quantize.round import QuantizedWeight
from codesign.schemes.scheme import PerGroup, Scheme
from codesign.schemes.torchao_arguments import torchao_config

_ROW = {"_type": "PerRow", "_data": {"dim": -1}}
_E4M3 = {"_type": "torch.dtype", "_data": "float8_e4m3fn"}
_AUTO = {"_type": "KernelPreference", "_data": "AUTO"}
_MULTIPLY = {"_type": "Float8MMConfig", "_data": {"emulate": False, "use_fast_accum": True, "pad_inner_dim": False}}
_INT8_INPUTS = {
    "_type": "QuantizeTensorToInt8Kwargs",
    "_data": {"granularity": _ROW, "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
              "reduce_range": False},
}  # fmt: skip
_FP8_INPUTS = {
    "_type": "QuantizeTensorToFloat8Kwargs",
    "_data": {"float8_dtype": _E4M3, "granularity": _ROW, "mm_config": _MULTIPLY, "hp_value_lb": None,
              "hp_value_ub": None, "kernel_preference": _AUTO},
}  # fmt: skip


def _problem(head: LayerHead) -> str | None:
    scheme = head.scheme
    if scheme.family == "w8a16" and scheme.weights.symmetric:
        return ragged_problem(head)
    if scheme.name in ("W8A8", "FP8-channel"):
        return None
    return (
        f"of torchao's tensors those of W8A16, W8A8 and FP8-channel are written, not {scheme}: "
        "its 4-bit tensors are packed for one kind of GPU. Use one of these schemes, or compressed-tensors."
    )


def _pack(layer: QuantizedLayer, contents: Contents) -> Tensors:
    import torch

    weight = layer.weight
    assert isinstance(weight, QuantizedWeight)
    assert weight.scales is not None
    codes = weight.codes if weight.codes.dtype == torch.int8 else weight.codes.view(torch.float8_e4m3fn)
    return {"_weight_qdata": codes, "_weight_scale": weight.scales.stored.float()}


def _metadata(contents: Contents) -> Mapping[str, str]:
    names = {}
    for name in contents.shapes:
        head = contents.quantized.get(name.removesuffix(".weight"))
        names[name] = {"_type": "Tensor"} if head is None else _tensor_metadata(head, contents.dtype_name)
    return {"tensor_names": json.dumps(list(names)), **{name: json.dumps(value) for name, value in names.items()}}


def _tensor_metadata(head: LayerHead, dtype: str) -> dict[str, Any]:
    granularity, k = head.scheme.weights.granularity, head.shape[1]
    data: dict[str, Any] = {
        "block_size": [1, granularity.size if isinstance(granularity, PerGroup) else k],
        "dtype": {"_type": "torch.dtype", "_data": dtype},
    }
    if head.scheme.family == "fp8":
        data |= {"mm_config": _MULTIPLY, "act_quant_kwargs": _FP8_INPUTS, "kernel_preference": _AUTO}
        kind = "Float8Tensor"
    else:
        data |= {"act_quant_kwargs": _INT8_INPUTS if head.scheme.family == "w8a8" else None, "reduce_range": False}
        kind = "Int8Tensor"
    return {"_type": kind, "_data": data, "_tensor_data_names": ["qdata", "scale"]}


def _config(contents: Contents) -> dict[str, Any]:
    keys = {head.name: _known(head.scheme) for members in by_scheme(contents).values() for head in members}
    config = {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": keys}}
    return {
        "quant_method": "torchao",
        "quant_type": {"default": config},
        "modules_to_not_convert": list(contents.kept) or None,
        "include_input_output_embeddings": contents.source.model.head.name in contents.quantized,
    }


def _known(scheme: Scheme) -> dict[str, Any]:
    found = torchao_config(scheme)
    assert found is not None
    return found


TORCHAO = Format("torchao", _problem, _pack, _config, metadata=_metadata)
