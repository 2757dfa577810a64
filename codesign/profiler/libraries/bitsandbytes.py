"""bitsandbytes: NF4 by its CPU kernel for AVX-512 BF16, packed as Linear4bit packs for it."""

import os
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import torch_cpu
from codesign.profiler.libraries.adapter import GemmRow, Library, import_quietly, k_multiple, n_multiple, needs_flags
from codesign.profiler.weights import QuantizedWeights

BLOCK = 64
_ROWS = 32  # _convert_weight_packed_for_cpu packs blocks of so many rows


def stay_offline() -> None:
    """Keep bitsandbytes from fetching a kernel when it is imported, as it does with the package `kernels`."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def _start(threads: int) -> None:
    stay_offline()
    torch_cpu.start(threads)


def quantized(weights: QuantizedWeights, case: GemmCase, dtype_name: str, device: str) -> tuple[Any, Any]:
    """Return codes with the first of two in the high half, and the state that holds a scale per block."""
    import torch

    functional = import_quietly("bitsandbytes.functional")
    codes = weights.codes.astype(np.uint8).reshape(-1)
    packed = torch.from_numpy((codes[0::2] << 4) | codes[1::2]).reshape(-1, 1).to(device)
    state = functional.QuantState(
        absmax=torch.from_numpy(weights.scales.reshape(-1).copy()).to(device),
        shape=torch.Size((case.n, case.k)),
        dtype=getattr(torch, dtype_name),
        blocksize=BLOCK,
        code=functional.get_4bit_type("nf4", device=device),
        quant_type="nf4",
    )
    return packed, state


def _pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
    """Return the weights in the layout of the CPU kernel."""
    functional = import_quietly("bitsandbytes.functional")
    packed, state = quantized(weights, case, "bfloat16", "cpu")
    return *functional._convert_weight_packed_for_cpu(packed, state), import_quietly("bitsandbytes").matmul_4bit


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
            limits=(n_multiple(_ROWS), k_multiple(BLOCK), needs_flags("avx512_bf16")),
            note="scales in bf16, not quantized a second time",
        ),
    ),
    _start,
)  # fmt: skip
