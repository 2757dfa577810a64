"""The arguments of compressed-tensors for our schemes.

Source: compressed-tensors 0.20, quantization/quant_args.py and quant_scheme.py (the presets).
"""

from typing import Any

from codesign.schemes.scheme import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, Scheme

BLOCK_FLOATS = ("mxfp4", "mxfp8", "fp4-a16", "nvfp4")
FP8_KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
_NUMBERS = {"e4m3": "float", "e2m1": "float"}


def weight_arguments(scheme: Scheme) -> dict[str, Any]:
    """Return the quantization arguments of the weights."""
    weights = scheme.weights
    base = _number(weights.number, weights.bits) | {"symmetric": weights.symmetric, "dynamic": False}
    match weights.granularity:
        case PerTensor():
            return base | {"strategy": "tensor"}
        case PerBlock(rows, columns):
            return base | {"strategy": "block", "block_structure": [rows, columns]}
        case PerGroup(size) if weights.tensor_scale_bits:
            return base | {"strategy": "tensor_group", "group_size": size, "scale_dtype": "torch.float8_e4m3fn"}
        case PerGroup(size):
            scales = {"scale_dtype": "torch.uint8"} if scheme.family in BLOCK_FLOATS else {}
            return base | {"strategy": "group", "group_size": size} | scales
        case _:
            return base | {"strategy": "channel"}


def activation_arguments(scheme: Scheme) -> dict[str, Any] | None:
    """Return the quantization arguments of the activations, None where they stay in 16 bits."""
    activations = scheme.activations
    base = _number(activations.number, activations.bits) | {"symmetric": True, "dynamic": activations.dynamic}
    match activations.granularity:
        case PerToken() | PerChannel():
            return base | {"strategy": "token"}
        case PerTensor():
            return base | {"strategy": "tensor", "observer": "static_minmax"}
        case PerGroup(size) if scheme.family == "nvfp4":
            local = {"strategy": "tensor_group", "group_size": size, "dynamic": "local", "observer": "static_minmax"}
            return base | local | {"scale_dtype": "torch.float8_e4m3fn"}
        case PerGroup(size):
            scales = {"scale_dtype": "torch.uint8"} if scheme.family in BLOCK_FLOATS else {}
            return base | {"strategy": "group", "group_size": size} | scales
        case _:
            return None


def _number(number: str, bits: float) -> dict[str, Any]:
    return {"num_bits": int(bits), "type": _NUMBERS.get(number, "int")}
