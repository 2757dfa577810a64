"""Tensors of GPTQ and AWQ checkpoints: weights transposed, [k, n]. Source: ModelCloud/GPTQModel, nn_modules/qlinear."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.numbers import SignedIntegers, UnsignedIntegers, codec_of
from codesign.quantize.pack import as_stored, from_zero, pack_words, unpack_words
from codesign.quantize.round import QuantizedWeight
from codesign.quantize.scales import Scales
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]

GPTQ_BITS = (2, 3, 4, 8)
_AWQ_BITS, _AWQ_COLUMNS = 4, 8
# Nibble i of an AWQ word holds this column of eight. Source: gptqmodel, quantization/awq/utils/packing_utils.py.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_AWQ_BACK = tuple(_AWQ_ORDER.index(column) for column in range(_AWQ_COLUMNS))


def to_gptq(weight: QuantizedWeight, *, version: int) -> Tensors:
    """Return qweight, qzeros, scales and g_idx; version 1 stores zero points less one, version 2 as they are."""
    import torch

    codec = _integers(weight.scheme, GPTQ_BITS, "GPTQ")
    assert weight.scales is not None
    codes, zeros = from_zero(weight, codec)
    if version == 1 and bool((zeros == 0).any()):
        raise InputError("GPTQ version 1 stores zero points less one and has no 0; write gptq_v2 or symmetric weights.")
    groups = torch.arange(weight.shape[1], dtype=torch.int32) // weight.tile.columns
    return {
        "qweight": pack_words(codes, codec.bits).T.contiguous(),
        "qzeros": pack_words((zeros - int(version == 1)).T, codec.bits),
        "scales": as_stored(weight.scales.stored, torch.float16).T.contiguous(),
        "g_idx": groups if weight.group_of is None else weight.group_of.int(),
    }


def from_gptq(tensors: Tensors, scheme: Scheme, *, version: int) -> QuantizedWeight:
    """Return the weights of a GPTQ layer, groups in any order."""
    import torch

    codec = _integers(scheme, GPTQ_BITS, "GPTQ")
    group_of = tensors["g_idx"].long()
    scales = tensors["scales"].T.contiguous()
    codes = unpack_words(tensors["qweight"].T.contiguous(), codec.bits, len(group_of))
    zeros = unpack_words(tensors["qzeros"], codec.bits, len(scales)).T.contiguous() + int(version == 1)
    weight = _integer_weight(codes, scales, zeros, scheme)
    neighbours = torch.arange(len(group_of)) // weight.tile.columns
    return (
        weight if torch.equal(group_of, neighbours) else QuantizedWeight(weight.codes, weight.scales, scheme, group_of)
    )


def to_awq(weight: QuantizedWeight) -> Tensors:
    """Return qweight [k, n / 8], qzeros [groups, n / 8] and scales [groups, n] in the order of AWQ's GEMM kernels."""
    import torch

    codec = _integers(weight.scheme, (_AWQ_BITS,), "AWQ")
    n, k = weight.shape
    if n % _AWQ_COLUMNS or k % weight.tile.columns:
        raise InputError(
            f"AWQ stores whole groups of {weight.tile.columns} inputs and words of 8 outputs; {n}x{k} has neither or "
            "one of them only. Leave this layer in 16 bits, or use compressed-tensors with a group size that divides."
        )
    if weight.group_of is not None:
        raise InputError("AWQ stores groups of neighbouring columns; quantize without reordered groups.")
    assert weight.scales is not None
    codes, zeros = from_zero(weight, codec)
    return {
        "qweight": pack_words(_interleaved(codes.T, _AWQ_ORDER), _AWQ_BITS),
        "qzeros": pack_words(_interleaved(zeros.T, _AWQ_ORDER), _AWQ_BITS),
        "scales": as_stored(weight.scales.stored, torch.float16).T.contiguous(),
    }


def from_awq(tensors: Tensors, scheme: Scheme) -> QuantizedWeight:
    """Return the weights of an AWQ layer."""
    _integers(scheme, (_AWQ_BITS,), "AWQ")
    scales = tensors["scales"].T.contiguous()
    codes, zeros = (
        _interleaved(unpack_words(tensors[name], _AWQ_BITS, len(scales)), _AWQ_BACK).T.contiguous()
        for name in ("qweight", "qzeros")
    )
    return _integer_weight(codes, scales, zeros, scheme)


def _interleaved(rows: "Tensor", order: tuple[int, ...]) -> "Tensor":
    return rows.reshape(len(rows), -1, _AWQ_COLUMNS)[:, :, list(order)].reshape(len(rows), -1)


def _integers(scheme: Scheme, bits: tuple[int, ...], name: str) -> SignedIntegers | UnsignedIntegers:
    """Return the codec of a scheme that the format stores."""
    weights = scheme.weights
    if scheme.weight_only and weights.number.startswith("int") and scheme.family != "gguf" and weights.bits in bits:
        codec = codec_of(weights)
        if isinstance(codec, SignedIntegers) or (isinstance(codec, UnsignedIntegers) and not codec.float_zero_points):
            return codec
    widths = ", ".join(str(width) for width in bits)
    raise InputError(f"{name} stores integers of {widths} bits with 16-bit activations, not {scheme}. Use W4A16-g128.")


def _integer_weight(codes: "Tensor", scales: "Tensor", zeros: "Tensor", scheme: Scheme) -> QuantizedWeight:
    """Return weights of codes and zero points that count from 0."""
    import torch

    codec = codec_of(scheme.weights)
    if not isinstance(codec, SignedIntegers):
        return QuantizedWeight(codes, Scales(scales, zeros), scheme)
    half = 2 ** (codec.bits - 1)
    if not bool((zeros == half).all()):
        raise InputError(f"The layer has zero points other than {half}: it is {scheme}-asym, not {scheme}.")
    return QuantizedWeight((codes.short() - half).to(torch.int8), Scales(scales), scheme)
