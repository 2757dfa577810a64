"""PyTorch's own CPU kernels. Facts of ranges and layouts are from aten/src/ATen/native, PyTorch 2.13."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries.adapter import (
    AttentionRow,
    GemmRow,
    Library,
    k_multiple,
    n_multiple,
    needs_flags,
)
from codesign.profiler.reference import AttentionInputs, quantize_tensor_int8, rounded, visible
from codesign.profiler.weights import TORCH_NAMES, Float32, FloatWeights, QuantizedWeights, quantize
from codesign.schemes.catalog import parse_scheme

_E4M3 = parse_scheme("FP8")
_INT4_MIDDLE = 8
_QLINEAR_ZERO = 128
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
FP8_NOTE = "no CPU of today multiplies FP8: this is reference code, around a hundred times slower than bf16"
_FP16_NOTE = "without AVX512-FP16 or Armv8.2 half precision PyTorch converts as it goes, slower than bf16 and fp32"
_SLOW_DECODE = "with one new token it reads the cache at a few percent of the memory bandwidth"


def start(threads: int) -> None:
    """Give PyTorch its threads, and no gradients."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


def tensor(values: Float32, precision: str) -> Any:
    """Return a tensor of its own memory in a precision."""
    import torch

    return torch.tensor(np.ascontiguousarray(values), dtype=getattr(torch, TORCH_NAMES[precision]))


def integers(codes: np.ndarray[Any, Any], kind: type[np.integer[Any]] = np.int8) -> Any:
    """Return a tensor of integers of its own memory."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(codes, dtype=kind).copy())


def to_float32(output: Any) -> Float32:
    """Return what a kernel made as float32."""
    values: Float32 = output.float().numpy()
    return values


def feeder(precision: str) -> Callable[[Float32, GemmCase], Any]:
    """Return what makes activations of a precision."""
    return lambda x, _case: tensor(x, precision)


def _dense(precision: str) -> GemmRow:
    import_free_name = precision.upper()
    return GemmRow(
        "linear", import_free_name, precision, feeder(precision),
        pack=lambda weights, _fed, _case: tensor(weights.values, precision),
        call=linear, output=to_float32, x_precision=precision, note=_FP16_NOTE if precision == "fp16" else "",
    )  # fmt: skip


def linear(x: Any, w: Any) -> Any:
    """Return x · wᵀ by PyTorch."""
    import torch

    return torch.nn.functional.linear(x, w)


def _pack_mkldnn(weights: FloatWeights, _fed: Any, case: GemmCase) -> Any:
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(tensor(weights.values, "bf16"), case.m)


def _call_mkldnn(x: Any, w: Any) -> Any:
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def _feed_int8(x: Float32, _case: GemmCase) -> Any:
    quantized = quantize_tensor_int8(x)
    return integers(quantized.codes), float(quantized.scales[0, 0])


def _pack_int_mm(contiguous: bool) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
        w = integers(weights.codes).t()
        return (w.contiguous() if contiguous else w), weights.scales

    return pack


def _call_int_mm(fed: Any, packed: Any) -> Any:
    import torch

    return torch._int_mm(fed[0], packed[0]), fed[1], packed[1]


def _scaled(result: Any) -> Float32:
    sums, x_scale, w_scales = result
    values: Float32 = sums.numpy().astype(np.float32) * np.float32(x_scale) * w_scales[:, 0]
    return values


def _int_mm(name: str, contiguous: bool) -> GemmRow:
    return GemmRow(
        name, "W8A8-static", "int8", _feed_int8, _pack_int_mm(contiguous), _call_int_mm, _scaled,
        x_precision="fp32", rounding="int8 per tensor", limits=(needs_flags("avx512_vnni"),),
        note="int8 in, int32 out: neither quantizes activations nor scales the sums",
    )  # fmt: skip


def _pack_int8pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    return integers(weights.codes), tensor(weights.scales[:, 0], "bf16")


def _call_int8pack(x: Any, packed: Any) -> Any:
    import torch

    return torch._weight_int8pack_mm(x, *packed)


def _pack_int4pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    """Return codes packed by PyTorch, and [k / group, n, 2] of scale and of what the middle code stands for: 0."""
    import torch

    codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers(weights.codes + _INT4_MIDDLE, np.int32), 1)
    scales = np.stack([weights.scales.T, np.zeros_like(weights.scales.T)], axis=2)
    return codes, weights.group, tensor(scales, "bf16")


def _call_int4pack(x: Any, packed: Any) -> Any:
    import torch

    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, *packed)


def _int4pack(group: int) -> GemmRow:
    return GemmRow(
        "int4pack", f"W4A16-g{group}", "bf16", feeder("bf16"), _pack_int4pack, _call_int4pack, to_float32,
        scale_precision="bf16", scale_bytes=4.0, limits=(n_multiple(16), k_multiple(group)),
    )  # fmt: skip


def _pack_linear_dynamic(engine: str) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
        import torch

        torch.backends.quantized.engine = engine
        scales = torch.from_numpy(weights.scales[:, 0].astype(np.float64))
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with warnings.catch_warnings():  # quantized tensors are deprecated; this kernel takes no other
            warnings.simplefilter("ignore", UserWarning)
            w = torch._make_per_channel_quantized_tensor(integers(weights.codes), scales, zeros, 0)
        return torch.ops.quantized.linear_prepack(w, None)

    return pack


def _call_linear_dynamic(x: Any, packed: Any) -> Any:
    import torch

    return torch.ops.quantized.linear_dynamic(x, packed)


def _linear_dynamic(engine: str) -> GemmRow:
    return GemmRow(
        f"linear_dynamic_{engine}", "W8A8", "int8", feeder("fp32"), _pack_linear_dynamic(engine), _call_linear_dynamic,
        to_float32, x_precision="fp32", rounding="uint8 per tensor", scale_bytes=8.0, limits=(needs_flags("avx2"),),
        note="one activation scale for all tokens, not one per token",
    )  # fmt: skip


def _feed_uint8(x: Float32, _case: GemmCase) -> Any:
    """Return unsigned activations: with signed ones oneDNN's kernel falls to reference code."""
    quantized = quantize_tensor_int8(x)
    return integers(quantized.codes + _QLINEAR_ZERO, np.uint8), float(quantized.scales[0, 0])


def _pack_qlinear(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
    import torch

    packed = torch.ops.onednn.qlinear_prepack(integers(weights.codes), [case.m, case.k])
    return packed, tensor(weights.scales[:, 0], "fp32"), torch.zeros(case.n, dtype=torch.int32)


def _call_qlinear(fed: Any, packed: Any) -> Any:
    import torch

    x, scale = fed
    w, w_scales, w_zeros = packed
    return torch.ops.onednn.qlinear_pointwise(
        x, scale, _QLINEAR_ZERO, w, w_scales, w_zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _feed_e4m3(x: Float32, _case: GemmCase) -> Any:
    return e4m3(quantize(x, _E4M3))


def _pack_e4m3(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    codes, scale = e4m3(weights)
    return codes.t(), scale


def e4m3(values: Any) -> tuple[Any, Any]:
    """Return bytes as torch's float8, and their one scale."""
    import torch

    codes = integers(values.codes, np.uint8).view(torch.float8_e4m3fn)
    return codes, torch.tensor(float(values.scales[0, 0]), dtype=torch.float32)


def call_scaled_mm(fed: Any, packed: Any) -> Any:
    """Return the product of FP8 activations and weights, each with its scale, in bf16."""
    import torch

    return torch._scaled_mm(fed[0], packed[0], fed[1], packed[1], out_dtype=torch.bfloat16)


_GEMMS = (
    _dense("fp32"), _dense("bf16"), _dense("fp16"),
    GemmRow("mkldnn_prepacked", "BF16", "bf16", feeder("bf16"), _pack_mkldnn, _call_mkldnn, to_float32,
            limits=(needs_flags(*_AVX512),)),
    _int_mm("int_mm", False), _int_mm("int_mm_transposed", True),
    GemmRow("int8pack", "W8A16", "bf16", feeder("bf16"), _pack_int8pack, _call_int8pack, to_float32,
            scale_precision="bf16", scale_bytes=2.0),
    _int4pack(32), _int4pack(64), _int4pack(128),
    _linear_dynamic("x86"), _linear_dynamic("fbgemm"), _linear_dynamic("onednn"),
    GemmRow("qlinear_pointwise", "W8A8-static", "int8", _feed_uint8, _pack_qlinear, _call_qlinear, to_float32,
            x_precision="fp32", rounding="int8 per tensor", scale_bytes=8.0, limits=(needs_flags("avx2"),),
            note="8 bits in, fp32 out: does not quantize the activations"),
    GemmRow("scaled_mm", "FP8", "fp8", _feed_e4m3, _pack_e4m3, call_scaled_mm, to_float32,
            x_precision="fp32", rounding="e4m3 per tensor", scale_bytes=0.0, note=FP8_NOTE),
)  # fmt: skip


def _pack_kv(precision: str) -> Callable[[AttentionInputs, AttentionCase], Any]:
    def pack(inputs: AttentionInputs, case: AttentionCase) -> Any:
        import torch

        square = case.q_tokens == case.kv_tokens
        plain = square or case.q_tokens == 1
        mask = None if plain else torch.from_numpy(visible(case.q_tokens, case.kv_tokens))
        return tensor(inputs.k, precision), tensor(inputs.v, precision), mask, square and case.q_tokens > 1

    return pack


def _call_sdpa(q: Any, cache: Any) -> Any:
    import torch

    k, v, mask, causal = cache
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _sdpa(precision: str) -> AttentionRow:
    return AttentionRow(
        "sdpa", precision, precision, lambda values: rounded(values, precision), 16,
        lambda q: tensor(q, precision), _pack_kv(precision), _call_sdpa, to_float32,
        q_precision=precision, note=_SLOW_DECODE,
    )  # fmt: skip


LIBRARY = Library(
    "torch", ("torch",), _GEMMS, start, attentions=(_sdpa("bf16"), _sdpa("fp16"))
)  # fmt: skip
