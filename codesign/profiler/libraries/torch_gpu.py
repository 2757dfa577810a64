"""PyTorch's own kernels on NVIDIA GPUs: cuBLASLt, tinygemm's 4-bit product, attention.

Facts of layouts and limits are from aten/src/ATen/native/cuda (Blas.cpp, ScaledBlas.cpp, int4mm.cu), PyTorch 2.11.
"""

from typing import Any

import numpy as np

from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import gpu, torch_cpu
from codesign.profiler.libraries.adapter import AttentionRow, GemmRow, Library, k_multiple, n_multiple
from codesign.profiler.reference import AttentionInputs, quantize_tensor_int8, rounded
from codesign.profiler.weights import Float32, QuantizedWeights, quantize
from codesign.schemes.catalog import parse_scheme

_E4M3 = parse_scheme("FP8")
_INT4_MIDDLE, _INNER_TILES = 8, 8
_INT_MM_ROWS_MIN = 17


def _dense(precision: str) -> GemmRow:
    return GemmRow(
        "linear", precision.upper(), precision, gpu.feeder(precision),
        pack=lambda weights, _fed, _case: gpu.tensor(weights.values, precision),
        call=torch_cpu.linear, output=gpu.to_float32, x_precision=precision, device="cuda",
        limits=() if precision == "fp16" else (gpu.needs_capability(8, 0),),
    )  # fmt: skip


def _feed_int8(x: Float32, _case: GemmCase) -> Any:
    quantized = quantize_tensor_int8(x)
    return gpu.integers(quantized.codes), float(quantized.scales[0, 0])


def _pack_int_mm(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    return gpu.integers(weights.codes).t(), weights.scales


def _call_int_mm(fed: Any, packed: Any) -> Any:
    import torch

    return torch._int_mm(fed[0], packed[0]), fed[1], packed[1]


def _scaled(result: Any) -> Float32:
    sums, x_scale, w_scales = result
    values: Float32 = sums.cpu().numpy().astype(np.float32) * np.float32(x_scale) * w_scales[:, 0]
    return values


def _many_rows(case: GemmCase) -> str | None:
    return None if case.m >= _INT_MM_ROWS_MIN else f"m = {case.m}: _int_mm takes {_INT_MM_ROWS_MIN} rows or more"


def _feed_e4m3(x: Float32, _case: GemmCase) -> Any:
    return _e4m3(quantize(x, _E4M3))


def _pack_e4m3(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    codes, scale = _e4m3(weights)
    return codes.t(), scale


def _e4m3(values: Any) -> tuple[Any, Any]:
    """Return bytes as torch's float8 and their one scale, on the GPU."""
    codes, scale = torch_cpu.e4m3(values)
    return codes.to(gpu.DEVICE), scale.to(gpu.DEVICE)


def _pack_int4pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    """Return codes packed two to a byte and tiled, and [k / group, n, 2] of scale and of what the middle stands for."""
    import torch

    codes = gpu.integers(weights.codes + _INT4_MIDDLE, np.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack((codes[:, ::2] << 4) | codes[:, 1::2], _INNER_TILES)
    scales = np.stack([weights.scales.T, np.zeros_like(weights.scales.T)], axis=2)
    return packed, weights.group, gpu.tensor(scales, "bf16")


def _call_int4pack(x: Any, packed: Any) -> Any:
    import torch

    return torch.ops.aten._weight_int4pack_mm(x, *packed)


def _int4pack(group: int) -> GemmRow:
    return GemmRow(
        "tinygemm", f"W4A16-g{group}", "bf16", gpu.feeder("bf16"), _pack_int4pack, _call_int4pack, gpu.to_float32,
        scale_precision="bf16", scale_bytes=4.0, device="cuda",
        limits=(gpu.needs_capability(8, 0), n_multiple(8), k_multiple(max(group, 16 * _INNER_TILES))),
    )  # fmt: skip


def _pack_kv(precision: str) -> Any:
    def pack(inputs: AttentionInputs, _case: AttentionCase) -> Any:
        return gpu.tensor(inputs.k, precision), gpu.tensor(inputs.v, precision)

    return pack


def _call_sdpa(q: Any, cache: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, *cache, enable_gqa=q.shape[1] != cache[0].shape[1])


def _sdpa(precision: str) -> AttentionRow:
    return AttentionRow(
        "sdpa", precision, precision, lambda values: rounded(values, precision), 16,
        lambda q: gpu.tensor(q, precision), _pack_kv(precision), _call_sdpa, gpu.to_float32,
        q_precision=precision, limits=(gpu.one_token,), device="cuda",
    )  # fmt: skip


LIBRARY = Library(
    "torch", ("torch",),
    (
        _dense("fp16"), _dense("bf16"),
        GemmRow("int_mm", "W8A8-static", "int8", _feed_int8, _pack_int_mm, _call_int_mm, _scaled, x_precision="fp32",
                rounding="int8 per tensor", device="cuda", limits=(_many_rows, n_multiple(8), k_multiple(8)),
                note="int8 in, int32 out: neither quantizes activations nor scales the sums"),
        GemmRow("scaled_mm", "FP8", "fp8", _feed_e4m3, _pack_e4m3, torch_cpu.call_scaled_mm, gpu.to_float32,
                x_precision="fp32", rounding="e4m3 per tensor", scale_bytes=0.0, device="cuda",
                limits=(gpu.needs_capability(8, 9), n_multiple(16), k_multiple(16)),
                note="e4m3 in: does not quantize the activations"),
        _int4pack(32), _int4pack(64), _int4pack(128),
    ),
    gpu.start, attentions=(_sdpa("bf16"), _sdpa("fp16")), problem=gpu.problem, device="cuda",
)  # fmt: skip
