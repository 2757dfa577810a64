"""bitsandbytes: NF4 by its CPU kernel for AVX-512 BF16, packed as Linear4bit packs for it, and on GPUs."""

import os
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import gpu, torch_cpu
from codesign.profiler.libraries.adapter import GemmRow, Library, import_quietly, k_multiple, n_multiple, needs_flags
from codesign.profiler.weights import QuantizedWeights

_BLOCK = 64
_ROWS = 32  # _convert_weight_packed_for_cpu packs blocks of so many rows


def _start(threads: int) -> None:
    # With the package `kernels` installed, importing bitsandbytes would fetch a kernel from the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch_cpu.start(threads)


def _quantized(weights: QuantizedWeights, case: GemmCase, dtype_name: str, device: str) -> tuple[Any, Any]:
    """Return codes with the first of two in the high half, and the state that holds a scale per block."""
    import torch

    functional = import_quietly("bitsandbytes.functional")
    codes = weights.codes.astype(np.uint8).reshape(-1)
    packed = torch.from_numpy((codes[0::2] << 4) | codes[1::2]).reshape(-1, 1).to(device)
    state = functional.QuantState(
        absmax=torch.from_numpy(weights.scales.reshape(-1).copy()).to(device),
        shape=torch.Size((case.n, case.k)),
        dtype=getattr(torch, dtype_name),
        blocksize=_BLOCK,
        code=functional.get_4bit_type("nf4", device=device),
        quant_type="nf4",
    )
    return packed, state


def _pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
    """Return the weights in the layout of the CPU kernel."""
    functional = import_quietly("bitsandbytes.functional")
    packed, state = _quantized(weights, case, "bfloat16", "cpu")
    return *functional._convert_weight_packed_for_cpu(packed, state), import_quietly("bitsandbytes").matmul_4bit


def _pack_gpu(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
    """Return the weights as Linear4bit hands them over: transposed."""
    packed, state = _quantized(weights, case, "float16", gpu.DEVICE)
    return packed.t(), state, import_quietly("bitsandbytes").matmul_4bit


def _call(x: Any, packed: Any) -> Any:
    codes, state, matmul_4bit = packed
    return matmul_4bit(x, codes, state)


LIBRARY = Library(
    "bitsandbytes",
    ("bitsandbytes", "torch"),
    (
        GemmRow(
            "linear4bit", "NF4", "bf16", torch_cpu.feeder("bf16"), _pack, _call, torch_cpu.to_float32,
            scale_precision="bf16", scale_bytes=2.0,
            limits=(n_multiple(_ROWS), k_multiple(_BLOCK), needs_flags("avx512_bf16")),
            note="scales in bf16, not quantized a second time",
        ),
    ),
    _start,
)  # fmt: skip
GPU_LIBRARY = Library(
    "bitsandbytes",
    ("bitsandbytes", "torch"),
    (
        GemmRow(
            "linear4bit", "NF4", "fp16", gpu.feeder("fp16"), _pack_gpu, _call, gpu.to_float32, x_precision="fp16",
            limits=(k_multiple(_BLOCK),), note="scales in fp32, not quantized a second time", device="cuda",
        ),
    ),
    gpu.start,
    problem=gpu.problem,
    device="cuda",
)  # fmt: skip
