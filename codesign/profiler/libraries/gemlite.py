"""gemlite's Triton kernels on NVIDIA GPUs: weights of 4 and 8 bits, activations of 16 or 8.

Facts are from gemlite 0.6.0.post2: helper.py (A16W4_HQQ_INT, A16W8_INT8, A8W8_INT8_dynamic, A8W8_FP8_dynamic take
codes and scales as they are), core.py (GemLiteLinearTriton.pack, sizes), quant_utils.py (rounding of activations).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import gpu
from codesign.profiler.libraries.adapter import GemmRow, Library, import_quietly, k_multiple, n_multiple, too_old
from codesign.profiler.libraries.torchao import call
from codesign.profiler.weights import QuantizedWeights

_INT4_MIDDLE, _SIZE_STEP = 8, 32


def _problem() -> str | None:
    return gpu.problem() or too_old("gemlite", 0, 6)


def _helper(name: str) -> Any:
    import torch

    kind = getattr(import_quietly("gemlite.helper"), name)
    return kind(device=gpu.DEVICE, dtype=torch.float16)


def _pack_int4(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    codes = gpu.integers(weights.codes + _INT4_MIDDLE, np.uint8)
    zeros = np.full_like(weights.scales, _INT4_MIDDLE)
    return _helper("A16W4_HQQ_INT").from_weights(codes, gpu.tensor(weights.scales, "fp16"), gpu.tensor(zeros, "fp16"))


def _pack_8_bits(helper: str) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
        return _helper(helper).from_weights(_codes(weights), scales=gpu.tensor(weights.scales, "fp32"))

    return pack


def _codes(weights: QuantizedWeights) -> Any:
    import torch

    if weights.levels is None:
        return gpu.integers(weights.codes)
    return gpu.integers(weights.codes, np.uint8).view(torch.float8_e4m3fn)


def _row(name: str, scheme: str, math_dtype: str, pack: Any, capability: tuple[int, int], **changed: Any) -> GemmRow:
    group = changed.pop("group", _SIZE_STEP)
    return GemmRow(
        name, scheme, math_dtype, gpu.feeder("fp16"), pack, call, gpu.to_float32, x_precision="fp16", device="cuda",
        limits=(gpu.needs_capability(*capability), n_multiple(_SIZE_STEP), k_multiple(group)), **changed,
    )  # fmt: skip


def _int4(group: int) -> GemmRow:
    return _row(
        "a16w4", f"W4A16-g{group}", "fp16", _pack_int4, (7, 5), group=group, scale_precision="fp16", scale_bytes=4.0,
        note="a zero point beside each scale, though all are the same",
    )  # fmt: skip


LIBRARY = Library(
    "gemlite", ("gemlite", "triton", "torch"),
    (
        _int4(32), _int4(64), _int4(128),
        _row("a16w8", "W8A16", "fp16", _pack_8_bits("A16W8_INT8"), (7, 5)),
        _row("a8w8", "W8A8", "int8", _pack_8_bits("A8W8_INT8_dynamic"), (7, 5), rounding="int8 per token"),
        _row("a8w8_fp8", "FP8-channel", "fp8", _pack_8_bits("A8W8_FP8_dynamic"), (8, 9), rounding="e4m3 per token"),
    ),
    gpu.start, problem=_problem, device="cuda", tunes=True,
)  # fmt: skip
