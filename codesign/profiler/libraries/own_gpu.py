"""Our own kernels for NVIDIA GPUs (codesign.gpu): products of few rows, of many with a library's help, attention."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import gpu
from codesign.profiler.libraries.adapter import AttentionRow, GemmRow, Library, Limit, k_multiple, n_multiple
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


def _many_rows(case: GemmCase) -> str | None:
    from codesign.gpu.many_rows import INT_MM_ROWS_MIN

    return None if case.m >= INT_MM_ROWS_MIN else f"m = {case.m}: measured from {INT_MM_ROWS_MIN} rows on"


def _for_triton(case: GemmCase) -> str | None:
    from codesign.gpu.triton_gemm import ROWS_MAX, ROWS_MIN, problem

    wanted = f"m = {case.m}: the Triton kernel is for {ROWS_MIN} to {ROWS_MAX} rows"
    return problem() or (None if ROWS_MIN <= case.m <= ROWS_MAX else wanted)


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


def _repeat_weight_only(packed: Any, times: int) -> Any:
    parts = {name: getattr(packed, name) for name in ("codes", "halves", "zeros", "factors")}
    whole = {name: _below(values, times) for name, values in parts.items() if values is not None}
    return replace(packed, n=packed.n * times, **whole)


def _repeat_rows(packed: Any, times: int) -> Any:
    return replace(packed, n=packed.n * times, codes=_below(packed.codes, times), scales=_below(packed.scales, times))


def _below(values: Any, times: int) -> Any:
    """Return a tensor so many times along its first dimension."""
    return values.repeat(times, *(1,) * (values.dim() - 1))


def _call_weight_only(x: Any, packed: Any) -> Any:
    from codesign.gpu.gemm import multiply_weight_only

    return multiply_weight_only(_state()[0], x, packed, _state()[1])


def _call_dequantized(x: Any, packed: Any) -> Any:
    from codesign.gpu.many_rows import multiply_dequantized

    return multiply_dequantized(_state()[0], x, packed, _state()[1])


def _call_triton(x: Any, packed: Any) -> Any:
    from codesign.gpu.triton_gemm import multiply_by_triton

    return multiply_by_triton(x, packed, _state()[0].multiprocessors)


def _pack_w8a8(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    from codesign.gpu.gemm import pack_w8a8

    return pack_w8a8(weights.codes.astype(np.int8), weights.scales[:, 0], gpu.DEVICE)


def _call_w8a8(x: Any, packed: Any) -> Any:
    from codesign.gpu.gemm import multiply_w8a8

    return multiply_w8a8(_state()[0], x, packed, _state()[1])


def _pack_int8_rows(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    from codesign.gpu.many_rows import pack_int8_rows

    return pack_int8_rows(weights.codes.astype(np.int8), weights.scales[:, 0], gpu.DEVICE)


def _call_rounded(x: Any, packed: Any) -> Any:
    from codesign.gpu.many_rows import multiply_rounded

    return multiply_rounded(_state()[0], x, packed)


def _scheme(bits: int, group: int | None, asymmetric: bool = False) -> str:
    return f"W{bits}A16" + (f"-g{group}" if group else "") + ("-asym" if asymmetric else "")


@dataclass(frozen=True, slots=True)
class _Format:
    """A scheme of weights, what stands for 0 in its bytes without zero points, and what is stored beside a group."""

    scheme: str
    kind: str
    middle: int
    scale_bytes: float


_FOUR_BITS = (
    *(_Format(_scheme(4, group), "int4", 8, 2.0 if group else 4.0) for group in _GROUPS),
    *(_Format(_scheme(4, group, True), "int4", 8, 3.0 if group else 5.0) for group in _GROUPS),
)
_EIGHT_BITS = (_Format("W8A16", "int8", 128, 4.0), _Format("FP8-A16", "e4m3", 0, 4.0))


def _weight_only(kernel: str, of: _Format, call: Callable[[Any, Any], Any], *limits: Limit, note: str = "") -> GemmRow:
    """Return a row in half precision, which all GPUs from the T4 on have."""
    return GemmRow(
        kernel, of.scheme, "fp16", gpu.feeder("fp16"), _pack_weight_only(of.kind, of.middle), call, gpu.to_float32,
        x_precision="fp16", scale_precision="fp16", scale_bytes=of.scale_bytes, limits=(k_multiple(32), *limits),
        device="cuda", note=note, repeat=_repeat_weight_only,
    )  # fmt: skip


def _dequantized(of: _Format) -> GemmRow:
    return _weight_only(
        "dequantize_mm", of, _call_dequantized, _many_rows, note="writes the weights in 16 bits first, then cuBLAS"
    )


_GEMMS = (
    *(_weight_only("w4a16_gemm", of, _call_weight_only, _few_rows) for of in _FOUR_BITS),
    *(_weight_only("w8a16_gemm", of, _call_weight_only, _few_rows) for of in _EIGHT_BITS),
    *(_weight_only("triton", of, _call_triton, _for_triton, gpu.needs_capability(8, 0)) for of in _FOUR_BITS),
    *(_dequantized(of) for of in (*_FOUR_BITS, *_EIGHT_BITS)),
    GemmRow("w8a8_gemm", "W8A8", "int8", gpu.feeder("fp16"), _pack_w8a8, _call_w8a8, gpu.to_float32,
            x_precision="fp16", rounding="int8 per token", limits=(k_multiple(32), _few_rows), device="cuda",
            repeat=_repeat_rows),
    GemmRow("round_int_mm", "W8A8", "int8", gpu.feeder("fp16"), _pack_int8_rows, _call_rounded, gpu.to_float32,
            x_precision="fp16", rounding="int8 per token", limits=(n_multiple(8), k_multiple(32), _many_rows),
            device="cuda", note="rounds activations per token, then cuBLASLt, then scales the sums",
            repeat=_repeat_rows),
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
