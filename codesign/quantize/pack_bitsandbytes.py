"""Tensors of bitsandbytes checkpoints. Source: bitsandbytes 0.50, functional.py (QuantState) and nn/modules.py."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.files import parse_json
from codesign.quantize.numbers import Levels, codec_of
from codesign.quantize.round import QuantizedWeight
from codesign.quantize.scales import NestedScales, Scales, dynamic_levels
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import PerGroup, Scheme

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]

_STATE = "weight.quant_state.bitsandbytes__"
_SCALES_PER_ABSMAX = 256
_INT8_TOP = 127


def to_bitsandbytes(weight: QuantizedWeight, dtype: str) -> Tensors:
    """Return the tensors of 4-bit floats by the ends of their names; `dtype` is what they are dequantized to."""
    import torch

    codec, granularity = codec_of(weight.scheme.weights), weight.scheme.weights.granularity
    if not weight.scheme.weights.flattened or weight.scales is None:
        raise InputError(f"bitsandbytes packs NF4 and BNB-FP4, not {weight.scheme}.")
    assert isinstance(codec, Levels)
    assert isinstance(granularity, PerGroup)
    kind = _kind(weight.scheme)
    state: dict[str, Any] = {
        "quant_type": kind, "blocksize": granularity.size, "dtype": dtype, "shape": list(weight.shape),
    }  # fmt: skip
    tensors = {
        "weight": _packed(weight.codes),
        "weight.absmax": weight.scales.stored.reshape(-1),
        "weight.quant_map": torch.tensor(codec.values),
    }
    if isinstance(weight.scales.above, NestedScales):
        above = weight.scales.above
        tensors |= {"weight.nested_absmax": above.absmax.reshape(-1), "weight.nested_quant_map": dynamic_levels()}
        state |= {
            "nested_blocksize": _SCALES_PER_ABSMAX, "nested_dtype": "float32", "nested_offset": above.offset.item(),
        }  # fmt: skip
    tensors[_STATE + kind] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def from_bitsandbytes(tensors: Tensors, scheme: Scheme, shape: tuple[int, int]) -> QuantizedWeight:
    """Return the weights that `to_bitsandbytes`, or bitsandbytes itself, stored."""
    import torch

    n, k = shape
    packed = tensors["weight"].reshape(-1)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)[: n * k].reshape(n, k)
    stored = tensors["weight.absmax"].reshape(-1, 1)
    if "weight.nested_absmax" not in tensors:
        return QuantizedWeight(codes, Scales(stored), scheme)
    text = bytes(tensors[_STATE + _kind(scheme)].tolist()).decode(errors="replace")
    offset = torch.tensor(float(parse_json(text, _STATE)["nested_offset"]))
    return QuantizedWeight(codes, Scales(stored, above=NestedScales(tensors["weight.nested_absmax"], offset)), scheme)


def to_llm_int8(weight: QuantizedWeight) -> Tensors:
    """Return the tensors of LLM.int8: SCB holds what the code 127 stands for in each row."""
    import torch

    if weight.scheme.name != "W8A8" or weight.scales is None:
        raise InputError(f"LLM.int8 stores W8A8, not {weight.scheme}.")
    return {
        "weight": weight.codes,
        "SCB": weight.scales.stored.reshape(-1).float() * _INT8_TOP,
        "weight_format": torch.tensor(0, dtype=torch.uint8),  # rows as they are
    }


def from_llm_int8(tensors: Tensors) -> QuantizedWeight:
    """Return the weights of LLM.int8, whose columns of outliers are not told apart in the file."""
    return QuantizedWeight(tensors["weight"], Scales(tensors["SCB"].reshape(-1, 1) / _INT8_TOP), parse_scheme("W8A8"))


def _kind(scheme: Scheme) -> str:
    return "nf4" if scheme.weights.number == "nf4" else "fp4"


def _packed(codes: "Tensor") -> "Tensor":
    """Return bytes [values / 2, 1] with the first of two codes in the high half."""
    import torch

    flat = codes.reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
    return ((flat[0::2] << 4) | flat[1::2]).reshape(-1, 1)
