"""Tensors of compressed-tensors checkpoints. Source: vllm-project/compressed-tensors, compressors/."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.numbers import SignedIntegers, UnsignedIntegers, codec_of
from codesign.quantize.pack import from_zero, pack_nibbles, pack_words, unpack_nibbles, unpack_words
from codesign.quantize.round import QuantizedWeight
from codesign.quantize.scales import Scales, TensorScale
from codesign.schemes.scheme import PerGroup, PerTensor, Scheme

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


def compressed_format(scheme: Scheme) -> str:
    """Return the name of the format that stores a scheme; schemes that none stores are refused with the reason."""
    weights = scheme.weights
    if weights.flattened or scheme.family == "gguf" or not scheme.quantized:
        raise InputError(f"compressed-tensors does not store {scheme}; use W4A16-g128, W8A8, FP8, NVFP4 or MXFP4.")
    if weights.number.startswith("int"):
        if weights.zero_point_bits > weights.bits:
            raise InputError(f"compressed-tensors stores integer zero points, {scheme} has floats. Use W4A16-g64-asym.")
        if weights.bits == 1:
            raise InputError(f"compressed-tensors reads one bit as 0 or -1, so that {scheme} cannot be stored.")
        return "int-quantized" if scheme.family == "w8a8" else "pack-quantized"
    if weights.number == "e3m2":
        raise InputError("compressed-tensors stores MXFP6 with E2M3 values, this MXFP6 is E3M2. Use MXFP8 or MXFP4.")
    named = {"nvfp4": "nvfp4-pack-quantized", "mxfp4": "mxfp4-pack-quantized", "mxfp8": "mxfp8-quantized"}
    if scheme.name == "NVFP4-A16":
        return named["nvfp4"]
    return named.get(scheme.name.lower().removesuffix("-a16"), "float-quantized")


def to_compressed(weight: QuantizedWeight) -> Tensors:
    """Return the tensors of a layer by the ends of their names, such as "weight_packed"."""
    name = compressed_format(weight.scheme)
    k = weight.shape[1]
    granularity = weight.scheme.weights.granularity
    if isinstance(granularity, PerGroup) and k % granularity.size:
        raise InputError(
            f"compressed-tensors needs rows of whole groups: {granularity.size} does not divide {k}. "
            "Use a smaller group size that does, or per-channel scales."
        )
    if weight.group_of is not None:
        raise InputError("compressed-tensors stores groups of neighbouring columns; quantize without reordered groups.")
    return _FORMATS[name].write(weight)


def from_compressed(tensors: Tensors, scheme: Scheme) -> QuantizedWeight:
    """Return the weights that `to_compressed`, or another writer of the format, stored."""
    return _FORMATS[compressed_format(scheme)].read(tensors, scheme)


def _write_words(weight: QuantizedWeight) -> Tensors:
    import torch

    assert weight.scales is not None
    codec = codec_of(weight.scheme.weights)
    assert isinstance(codec, SignedIntegers | UnsignedIntegers)
    codes, zeros = from_zero(weight, codec)
    tensors = {
        "weight_packed": pack_words(codes, codec.bits),
        "weight_scale": weight.scales.stored,
        "weight_shape": torch.tensor(weight.shape),
    }
    if isinstance(codec, UnsignedIntegers):
        tensors["weight_zero_point"] = pack_words(zeros.T, codec.bits).T.contiguous()
    return tensors


def _read_words(tensors: Tensors, scheme: Scheme) -> QuantizedWeight:
    import torch

    codec = codec_of(scheme.weights)
    assert isinstance(codec, SignedIntegers | UnsignedIntegers)
    n, k = (int(size) for size in tensors["weight_shape"])
    codes = unpack_words(tensors["weight_packed"], codec.bits, k)
    if isinstance(codec, SignedIntegers):
        signed = (codes.short() - 2 ** (codec.bits - 1)).to(torch.int8)
        return QuantizedWeight(signed, Scales(tensors["weight_scale"]), scheme)
    zeros = unpack_words(tensors["weight_zero_point"].T.contiguous(), codec.bits, n).T.contiguous()
    return QuantizedWeight(codes, Scales(tensors["weight_scale"], zeros), scheme)


def _write_plain(weight: QuantizedWeight) -> Tensors:
    import torch

    assert weight.scales is not None
    per_tensor = isinstance(weight.scheme.weights.granularity, PerTensor)
    scales = weight.scales.stored.reshape(1) if per_tensor else weight.scales.stored
    codes = weight.codes if weight.codes.dtype == torch.int8 else weight.codes.view(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}


def _read_plain(tensors: Tensors, scheme: Scheme) -> QuantizedWeight:
    import torch

    codes, scales = tensors["weight"], tensors["weight_scale"]
    if codes.dtype == torch.float8_e4m3fn:
        codes = codes.view(torch.uint8)
    return QuantizedWeight(codes, Scales(scales.reshape(1, 1) if scales.numel() == 1 else scales), scheme)


def _write_nibbles(weight: QuantizedWeight) -> Tensors:
    assert weight.scales is not None
    tensors = {"weight_packed": pack_nibbles(weight.codes), "weight_scale": weight.scales.stored}
    if isinstance(weight.scales.above, TensorScale):
        tensors["weight_global_scale"] = weight.scales.above.divisor
    return tensors


def _read_nibbles(tensors: Tensors, scheme: Scheme) -> QuantizedWeight:
    above = TensorScale(tensors["weight_global_scale"]) if "weight_global_scale" in tensors else None
    codes = unpack_nibbles(tensors["weight_packed"])
    return QuantizedWeight(codes, Scales(tensors["weight_scale"], above=above), scheme)


@dataclass(frozen=True, slots=True)
class _Format:
    write: Callable[[QuantizedWeight], Tensors]
    read: Callable[[Tensors, Scheme], QuantizedWeight]


_WORDS = _Format(_write_words, _read_words)
_PLAIN = _Format(_write_plain, _read_plain)
_NIBBLES = _Format(_write_nibbles, _read_nibbles)
_FORMATS = {
    "pack-quantized": _WORDS, "int-quantized": _PLAIN, "float-quantized": _PLAIN, "mxfp8-quantized": _PLAIN,
    "nvfp4-pack-quantized": _NIBBLES, "mxfp4-pack-quantized": _NIBBLES,
}  # fmt: skip
