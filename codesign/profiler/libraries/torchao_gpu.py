"""torchao's tensors on NVIDIA GPUs, called as they are without torch.compile.

Facts are from torchao 0.18.0, quantization/quantize_/workflows: int4/int4_tile_packed_to_4d_tensor.py (layout,
padding), int8/int8_tensor.py with kernel/intmm.py (what an int8 product falls back to), float8/float8_tensor.py with
float8/inference.py (shapes of scales; MSLK's kernels, which round otherwise), quantization/utils.py (_fp8_mm_compat).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import gpu, torch_cpu
from codesign.profiler.libraries.adapter import GemmRow, Library, Limit, import_quietly, k_multiple, n_multiple, too_old
from codesign.profiler.libraries.torchao import COMPOSED
from codesign.profiler.weights import QuantizedWeights

_INT4_MIDDLE, _INNER_TILES, _K_PADDING = 8, 8, 1024
_INT_MM_ROWS_MIN = 17
_UNCOMPILED = f"{COMPOSED}; torch.compile would merge some"


def _problem() -> str | None:
    return gpu.problem() or too_old("torchao", 0, 18)


def _pack_int4(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
    import torch

    codes, pairs = int4_parts(weights)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, _INNER_TILES)
    kind = import_quietly("torchao.quantization").Int4TilePackedTo4dTensor
    return kind(packed, pairs, [1, weights.group], torch.Size((case.n, case.k)))


def int4_parts(weights: QuantizedWeights) -> tuple[Any, Any]:
    """Return codes two to a byte, the first above, and [k / group, n, 2] of scales and zeros; k is padded."""
    missing = -weights.codes.shape[1] % _K_PADDING
    codes = np.pad(weights.codes + _INT4_MIDDLE, ((0, 0), (0, missing)), constant_values=_INT4_MIDDLE)
    scales = np.pad(weights.scales, ((0, 0), (0, missing // weights.group))).T
    pairs = np.stack([scales, np.zeros_like(scales)], axis=2)
    return gpu.integers((codes[:, ::2] << 4) | codes[:, 1::2], np.uint8), gpu.tensor(pairs, "bf16")


def _pack_int8(dynamic: bool) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
        import torch

        quantization = import_quietly("torchao.quantization")
        workflows = import_quietly("torchao.quantization.quantize_.workflows")
        rounding = workflows.QuantizeTensorToInt8Kwargs(granularity=quantization.PerRow()) if dynamic else None
        codes, scales = gpu.integers(weights.codes), gpu.tensor(weights.scales, "fp32")
        return quantization.Int8Tensor(codes, scales, [1, case.k], torch.bfloat16, act_quant_kwargs=rounding)

    return pack


def _pack_float8(granularity: str) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
        import torch

        quantization = import_quietly("torchao.quantization")
        workflows = import_quietly("torchao.quantization.quantize_.workflows")
        codes = gpu.integers(weights.codes, np.uint8).view(torch.float8_e4m3fn)
        per_row = granularity == "PerRow"
        kernels = import_quietly("torchao.quantization.quantize_.common").KernelPreference.TORCH
        rounding = workflows.QuantizeTensorToFloat8Kwargs(
            granularity=getattr(quantization, granularity)(), kernel_preference=kernels
        )
        return quantization.Float8Tensor(
            codes,
            gpu.tensor(weights.scales if per_row else weights.scales[:1], "fp32"),
            block_size=[1 if per_row else case.n, case.k],
            mm_config=quantization.Float8MMConfig(use_fast_accum=True),
            act_quant_kwargs=rounding,
            kernel_preference=kernels,
            dtype=torch.bfloat16,
        )

    return pack


def _many_rows(case: GemmCase) -> str | None:
    if case.m >= _INT_MM_ROWS_MIN:
        return None
    return f"m = {case.m}: below {_INT_MM_ROWS_MIN} rows torchao converts weights to fp32 and multiplies those"


def _row(name: str, scheme: str, math_dtype: str, pack: Any, limits: tuple[Limit, ...], **changed: Any) -> GemmRow:
    return GemmRow(
        name, scheme, math_dtype, gpu.feeder("bf16"), pack, torch_cpu.linear, gpu.to_float32, device="cuda",
        limits=limits, **{"note": _UNCOMPILED, **changed},
    )  # fmt: skip


def _int4(group: int) -> GemmRow:
    return _row(
        "int4_tile_packed", f"W4A16-g{group}", "bf16", _pack_int4,
        (gpu.needs_capability(8, 0), n_multiple(8), k_multiple(group)),
        scale_precision="bf16", scale_bytes=4.0, note=f"PyTorch's tinygemm; k is padded to a multiple of {_K_PADDING}",
    )  # fmt: skip


def _float8(scheme: str, granularity: str, rounding: str, scale_bytes: float) -> GemmRow:
    return _row(
        "float8_dynamic", scheme, "fp8", _pack_float8(granularity),
        (gpu.needs_capability(8, 9), n_multiple(16), k_multiple(16)), rounding=rounding, scale_bytes=scale_bytes,
        note=f"PyTorch's kernels, also where those of MSLK are installed; {_UNCOMPILED}",
    )  # fmt: skip


LIBRARY = Library(
    "torchao", ("torchao", "torch"),
    (
        _int4(32), _int4(64), _int4(128),
        _row("int8_weight_only", "W8A16", "bf16", _pack_int8(dynamic=False), (gpu.needs_capability(8, 0),),
             scale_precision="bf16", note=f"weights are converted to bf16 in each call; {_UNCOMPILED}"),
        _row("int8_dynamic", "W8A8", "int8", _pack_int8(dynamic=True),
             (gpu.needs_capability(8, 0), _many_rows, n_multiple(8), k_multiple(8)),
             rounding="int8 per token, bf16 scale", scale_precision="bf16",
             note=f"copies the weights transposed and prints activations to text in each call; {_UNCOMPILED}"),
        _float8("FP8-channel", "PerRow", "e4m3 per token, bf16 scale", 4.0),
        _float8("FP8-dynamic", "PerTensor", "e4m3 per tensor, bf16 scale", 0.0),
    ),
    gpu.start, problem=_problem, device="cuda",
)  # fmt: skip
