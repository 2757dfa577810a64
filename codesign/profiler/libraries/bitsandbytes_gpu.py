"""bitsandbytes on NVIDIA GPUs: NF4 by its own kernels and unpacked to 16 bits, and LLM.int8.

Facts are from bitsandbytes 0.50.2: autograd/_functions.py (matmul_4bit, MatmulLtState, MatMul8bitLt), functional.py
(gemv_4bit, dequantize_4bit), backends/cuda/ops.py (which kernel runs when; types); and from the cuBLAS manual
(cublasLtMatmul: int8 products need output and input features in multiples of 4).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import gpu, torch_cpu
from codesign.profiler.libraries.adapter import GemmRow, Library, import_quietly, k_multiple, n_multiple, too_old
from codesign.profiler.libraries.bitsandbytes import BLOCK, quantized, stay_offline
from codesign.profiler.weights import QuantizedWeights

_LARGEST_CODE = 127


def _problem() -> str | None:
    return gpu.problem() or too_old("bitsandbytes", 0, 50)


def _start(threads: int) -> None:
    stay_offline()
    gpu.start(threads)


def _pack_for(function: str) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
        codes, state = quantized(weights, case, "float16", gpu.DEVICE)
        return codes, state, getattr(import_quietly("bitsandbytes.functional"), function)

    return pack


def _pack_linear(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
    """Return the weights as Linear4bit hands them over: transposed."""
    codes, state = quantized(weights, case, "float16", gpu.DEVICE)
    return codes.t(), state, import_quietly("bitsandbytes").matmul_4bit


def _call_linear(x: Any, packed: Any) -> Any:
    codes, state, matmul_4bit = packed
    return matmul_4bit(x, codes, state)


def _call_gemv(x: Any, packed: Any) -> Any:
    codes, state, gemv_4bit = packed
    return gemv_4bit(x, codes, state=state)


def _call_dequantized(x: Any, packed: Any) -> Any:
    codes, state, dequantize_4bit = packed
    return torch_cpu.linear(x, dequantize_4bit(codes, state))


def _pack_int8(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    """Return the state of Linear8bitLt: codes, and the largest weight of each row, which is code 127."""
    bitsandbytes = import_quietly("bitsandbytes")
    state = bitsandbytes.MatmulLtState()
    state.CB = gpu.integers(weights.codes)
    state.SCB = gpu.tensor(weights.scales[:, 0] * np.float32(_LARGEST_CODE), "fp32")
    state.has_fp16_weights = state.is_training = False
    return state, bitsandbytes.matmul


def _call_int8(x: Any, packed: Any) -> Any:
    state, matmul = packed
    return matmul(x, state.CB, state=state)


def _one_row(case: GemmCase) -> str | None:
    return None if case.m == 1 else f"m = {case.m}: gemv_4bit takes one row"


def _nf4(name: str, pack: Any, call: Any, note: str, *limits: Any) -> GemmRow:
    return GemmRow(
        name, "NF4", "fp16", gpu.feeder("fp16"), pack, call, gpu.to_float32, x_precision="fp16",
        limits=(k_multiple(BLOCK), *limits), note=f"scales in fp32, not quantized a second time{note}", device="cuda",
    )  # fmt: skip


LIBRARY = Library(
    "bitsandbytes",
    ("bitsandbytes", "torch"),
    (
        _nf4("linear4bit", _pack_linear, _call_linear, ""),
        _nf4("gemv_4bit", _pack_for("gemv_4bit"), _call_gemv, "; the kernel of versions before 0.50", _one_row),
        _nf4("dequantize_4bit", _pack_for("dequantize_4bit"), _call_dequantized,
             "; unpacked to fp16 in memory, then cuBLAS"),
        GemmRow(
            "llm_int8", "W8A8", "int8", gpu.feeder("fp16"), _pack_int8, _call_int8, gpu.to_float32,
            x_precision="fp16", rounding="int8 per token", device="cuda",
            limits=(gpu.needs_capability(7, 5), n_multiple(4), k_multiple(4)),
            note="no columns of outliers kept in fp16: looking for them waits for the GPU in each call",
        ),
    ),
    _start,
    problem=_problem,
    device="cuda",
)  # fmt: skip
