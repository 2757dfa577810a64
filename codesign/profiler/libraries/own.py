"""Our own kernels (codesign.native), where this installation has them."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codesign import native
from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries.adapter import AttentionRow, GemmRow, Library, k_multiple
from codesign.profiler.reference import AttentionInputs, quantize_kv, quantize_tensor_int8, rounded
from codesign.profiler.weights import Float32, QuantizedWeights

_K_MULTIPLE = 32
_GROUPS = (None, 32, 64, 128)
_HEAD_DIM_MULTIPLE = 16
_HEAD_DIM_MAX = 256


def bf16_bits(values: Float32) -> NDArray[np.uint16]:
    """Return the upper halves of float32 numbers that are bf16 already."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16_bits(bits: NDArray[np.uint16]) -> Float32:
    """Return float32 numbers of bf16 ones."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _feed(x: Float32, case: GemmCase) -> Any:
    from codesign.native.call import Call

    return bf16_bits(x), Call(threads=case.threads, bfloat16=True)


def _native_group(weights: QuantizedWeights) -> int:
    """Return the group size, 0 where a row has one scale."""
    return 0 if weights.scales.shape[1] == 1 else weights.group


def _unsigned(weights: QuantizedWeights, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    if weights.zeros is not None:
        return weights.codes.astype(np.uint8), weights.zeros.astype(np.uint8)
    return (weights.codes + (1 << (bits - 1))).astype(np.uint8), None


def _pack_weight_only(bits: Literal[4, 8]) -> Any:
    def pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
        from codesign.native.gemm_bf16 import pack_weight_only

        codes, zeros = _unsigned(weights, bits)
        return pack_weight_only(bits, codes, weights.scales, zeros, _native_group(weights))

    return pack


def _call_weight_only(fed: Any, packed: Any) -> Any:
    from codesign.native.gemm_bf16 import run_weight_only

    return run_weight_only(fed[0], packed, fed[1])


def _pack_w4a8(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    from codesign.native.gemm_int8 import pack_w4a8

    codes, zeros = _unsigned(weights, 4)
    return pack_w4a8(codes, weights.scales, zeros, _native_group(weights))


def _call_w4a8(fed: Any, packed: Any) -> Any:
    from codesign.native.gemm_int8 import run_w4a8

    return run_w4a8(fed[0], packed, fed[1])


def _pack_w8a8(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    from codesign.native.gemm_int8 import pack_w8a8

    return pack_w8a8(weights.codes.astype(np.int8), weights.scales[:, 0])


def _call_w8a8(fed: Any, packed: Any) -> Any:
    from codesign.native.gemm_int8 import run_w8a8

    return run_w8a8(fed[0], packed, fed[1])


def _feed_static(x: Float32, case: GemmCase) -> Any:
    return *_feed(x, case), float(quantize_tensor_int8(x).scales[0, 0])


def _call_static(fed: Any, packed: Any) -> Any:
    from codesign.native.gemm_int8 import run_w8a8

    return run_w8a8(fed[0], packed, fed[1], fed[2])


def _name(bits: int, activation_bits: int, group: int | None, asymmetric: bool) -> str:
    return f"W{bits}A{activation_bits}" + (f"-g{group}" if group else "") + ("-asym" if asymmetric else "")


def _weight_only(bits: Literal[4, 8], group: int | None, asymmetric: bool = False) -> GemmRow:
    return GemmRow(
        f"w{bits}a16_gemm", _name(bits, 16, group, asymmetric), "bf16", _feed, _pack_weight_only(bits),
        _call_weight_only, from_bf16_bits, scale_precision="fp16", scale_bytes=_scale_bytes(group, asymmetric),
        limits=(k_multiple(_K_MULTIPLE),),
    )  # fmt: skip


def _w4a8(group: int | None, asymmetric: bool = False) -> GemmRow:
    return GemmRow(
        "w4a8_gemm", _name(4, 8, group, asymmetric), "int8", _feed, _pack_w4a8, _call_w4a8, from_bf16_bits,
        rounding="int8 per token", scale_precision="fp16", scale_bytes=_scale_bytes(group, asymmetric),
        limits=(k_multiple(_K_MULTIPLE),),
    )  # fmt: skip


def _scale_bytes(group: int | None, asymmetric: bool) -> float:
    """Return what the kernels keep per group: fp16 scales, fp32 ones per row, and a byte for a zero point."""
    return (2.0 if group else 4.0) + (1.0 if asymmetric else 0.0)


_INT8_LIMITS = (k_multiple(_K_MULTIPLE),)
_GEMMS = (
    *(_weight_only(bits, group) for bits in (4, 8) for group in _GROUPS),
    *(_weight_only(4, group, asymmetric=True) for group in _GROUPS),
    *(_w4a8(group) for group in _GROUPS),
    *(_w4a8(group, asymmetric=True) for group in _GROUPS),
    GemmRow("w8a8_gemm", "W8A8", "int8", _feed, _pack_w8a8, _call_w8a8, from_bf16_bits, rounding="int8 per token",
            limits=_INT8_LIMITS),
    GemmRow("w8a8_gemm", "W8A8-static", "int8", _feed_static, _pack_w8a8, _call_static, from_bf16_bits,
            rounding="int8 per tensor", limits=_INT8_LIMITS),
)  # fmt: skip


def _pack_cache(kv_format: str) -> Any:
    def pack(inputs: AttentionInputs, case: AttentionCase) -> Any:
        from codesign.native.attention import KvCache, KvShape

        cache = KvCache(KvShape(kv_format, case.batch, case.kv_heads, case.head_dim, case.kv_tokens))
        cache.append(inputs.k, inputs.v)
        return cache, case.threads

    return pack


def _attend(q: Any, packed: Any) -> Any:
    cache, threads = packed
    return cache.attend(q, threads=threads)


def _decode_only(case: AttentionCase) -> str | None:
    if case.q_tokens > 1:
        return "our attention kernel has no causal mask: one new token at a time"
    if case.head_dim % _HEAD_DIM_MULTIPLE or case.head_dim > _HEAD_DIM_MAX:
        return f"head_dim = {case.head_dim} is not a multiple of {_HEAD_DIM_MULTIPLE} up to {_HEAD_DIM_MAX}"
    return None


def _attention(kv_format: str, bits: int) -> AttentionRow:
    return AttentionRow(
        "kv_attention", kv_format, "bf16",
        held=(lambda values: quantize_kv(values, bits)) if bits < 16 else (lambda values: rounded(values, kv_format)),
        bits=bits, feed=bf16_bits, pack=_pack_cache(kv_format), call=_attend, output=from_bf16_bits,
        scale_bytes=2.0 if bits < 16 else 0.0, limits=(_decode_only,),
    )  # fmt: skip


def _start(_threads: int) -> None:
    """Do nothing: every call names its threads."""


LIBRARY = Library(
    "codesign", ("codesign",), _GEMMS, _start,
    attentions=tuple(_attention(*one) for one in (("fp16", 16), ("bf16", 16), ("int8", 8), ("int4", 4))),
    problem=native.absence,
)  # fmt: skip
