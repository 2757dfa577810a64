"""Our own kernels for NVIDIA GPUs (codesign.gpu): few rows of activations, and attention of decode."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import gpu
from codesign.profiler.libraries.adapter import AttentionRow, GemmRow, Library, k_multiple
from codesign.profiler.reference import AttentionInputs, rounded
from codesign.profiler.weights import Float32, QuantizedWeights

_GROUPS = (None, 32, 64, 128)


@functools.cache
def _state() -> tuple[Any, Any]:
    """Return the GPU and the workspace that all calls share."""
    from codesign.gpu.gemm import Workspace
    from codesign.gpu.launch import gpu as gpu_of

    return gpu_of(), Workspace(gpu.DEVICE)


def _problem() -> str | None:
    missing = [name for name in ("cuda.core", "cuda.bindings.nvrtc") if not _is_there(name)]
    if missing:
        return f"{' and '.join(missing)} cannot be imported; pip install codesign[gpu]"
    return gpu.problem()


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _few_rows(case: GemmCase) -> str | None:
    from codesign.gpu.gemm import ROWS_MAX

    return None if case.m <= ROWS_MAX else f"m = {case.m}: our GPU kernels take up to {ROWS_MAX} rows"


def _group(weights: QuantizedWeights) -> int:
    return 0 if weights.scales.shape[1] == 1 else weights.group


def _pack_weight_only(kind: str, middle: int) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
        from codesign.gpu.gemm import pack_weight_only

        zeros = None if weights.zeros is None else weights.zeros.astype(np.uint8)
        codes = (weights.codes + (middle if zeros is None else 0)).astype(np.uint8)
        scales = weights.scales
        return pack_weight_only(kind, codes, scales, zeros, _group(weights), gpu.DEVICE)  # type: ignore[arg-type]

    return pack


def _call_weight_only(x: Any, packed: Any) -> Any:
    from codesign.gpu.gemm import multiply_weight_only

    return multiply_weight_only(_state()[0], x, packed, _state()[1])


def _pack_w8a8(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    from codesign.gpu.gemm import pack_w8a8

    return pack_w8a8(weights.codes.astype(np.int8), weights.scales[:, 0], gpu.DEVICE)


def _call_w8a8(x: Any, packed: Any) -> Any:
    from codesign.gpu.gemm import multiply_w8a8

    return multiply_w8a8(_state()[0], x, packed, _state()[1])


def _scheme(bits: int, group: int | None, asymmetric: bool = False) -> str:
    return f"W{bits}A16" + (f"-g{group}" if group else "") + ("-asym" if asymmetric else "")


def _weight_only(kernel: str, scheme: str, kind: str, middle: int, scale_bytes: float) -> GemmRow:
    """Return a row in half precision, which all GPUs from the T4 on have."""
    return GemmRow(
        kernel, scheme, "fp16", gpu.feeder("fp16"), _pack_weight_only(kind, middle), _call_weight_only, gpu.to_float32,
        x_precision="fp16", scale_precision="fp16", scale_bytes=scale_bytes, limits=(k_multiple(32), _few_rows),
        device="cuda",
    )  # fmt: skip


_GEMMS = (
    *(_weight_only("w4a16_gemm", _scheme(4, group), "int4", 8, 2.0 if group else 4.0) for group in _GROUPS),
    *(_weight_only("w4a16_gemm", _scheme(4, group, True), "int4", 8, 3.0 if group else 5.0) for group in _GROUPS),
    _weight_only("w8a16_gemm", "W8A16", "int8", 128, 4.0),
    GemmRow("w8a8_gemm", "W8A8", "int8", gpu.feeder("fp16"), _pack_w8a8, _call_w8a8, gpu.to_float32,
            x_precision="fp16", rounding="int8 per token", limits=(k_multiple(32), _few_rows), device="cuda"),
)  # fmt: skip


def _pack_cache(kv_format: str) -> Callable[[AttentionInputs, AttentionCase], Any]:
    def pack(inputs: AttentionInputs, case: AttentionCase) -> Any:
        import torch

        from codesign.gpu.attention import GpuKvCache, GpuKvShape

        shape = GpuKvShape(kv_format, case.batch, case.kv_heads, case.head_dim, case.kv_tokens)
        cache = GpuKvCache(_state()[0], shape, _dtype(kv_format, torch), gpu.DEVICE)
        precision = "bf16" if kv_format == "bf16" else "fp16"
        cache.append(gpu.tensor(inputs.k, precision), gpu.tensor(inputs.v, precision))
        return cache

    return pack


def _dtype(kv_format: str, torch: Any) -> Any:
    return torch.bfloat16 if kv_format == "bf16" else torch.float16


def _attend(q: Any, cache: Any) -> Any:
    return cache.attend(q[:, :, 0])


def _decode_only(case: AttentionCase) -> str | None:
    from codesign.gpu.attention import HEAD_DIMS, ROWS_MAX

    if case.q_tokens > 1:
        return "our attention kernel takes one new token at a time"
    if case.head_dim not in HEAD_DIMS or case.heads // case.kv_heads > ROWS_MAX:
        return f"head dimensions are {HEAD_DIMS}, up to {ROWS_MAX} heads of queries share one of keys"
    return None


def _attention(kv_format: str, bits: int) -> AttentionRow:
    from codesign.gpu.rounding import held

    precision = "bf16" if kv_format == "bf16" else "fp16"
    return AttentionRow(
        "kv_attention", kv_format, precision, held=lambda values: held(rounded(values, precision), kv_format),
        bits=bits, feed=lambda q: gpu.tensor(q, precision), pack=_pack_cache(kv_format), call=_attend,
        output=_with_token, q_precision=precision, scale_bytes=2.0 if kv_format in ("int8", "int4") else 0.0,
        limits=(_decode_only,), device="cuda",
    )  # fmt: skip


def _with_token(output: Any) -> Float32:
    return gpu.to_float32(output)[:, :, None]


LIBRARY = Library(
    "codesign", ("codesign",), _GEMMS, gpu.start,
    attentions=tuple(_attention(*one) for one in (("fp16", 16), ("bf16", 16), ("fp8", 8), ("int8", 8), ("int4", 4))),
    problem=_problem, device="cuda",
)  # fmt: skip
