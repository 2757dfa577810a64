"""bitsandbytes: NF4 with its CPU kernel for AVX-512 BF16 and the packed layout that Linear4bit makes for it."""

import os
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import torch_cpu
from codesign.profiler.libraries.adapter import GemmRow, Library, import_quietly, k_multiple, n_multiple, needs_flags
from codesign.profiler.weights import QuantizedWeights

_BLOCK = 64
_ROWS = 32  # _convert_weight_packed_for_cpu packs blocks of so many rows


def _start(threads: int) -> None:
    # With the package `kernels` installed, importing bitsandbytes would fetch a kernel from the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch_cpu.start(threads)


def _pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
    """Return codes with the first of two in the high half, scales per block, then the layout of the CPU kernel."""
    import torch

    functional = import_quietly("bitsandbytes.functional")
    codes = weights.codes.astype(np.uint8).reshape(-1)
    packed = torch.from_numpy((codes[0::2] << 4) | codes[1::2]).reshape(-1, 1)
    state = functional.QuantState(
        absmax=torch.from_numpy(weights.scales.reshape(-1).copy()),
        shape=torch.Size((case.n, case.k)),
        dtype=torch.bfloat16,
        blocksize=_BLOCK,
        code=functional.get_4bit_type("nf4", device="cpu"),
        quant_type="nf4",
    )
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
            limits=(n_multiple(_ROWS), k_multiple(_BLOCK), needs_flags("avx512_bf16")),
            note="scales in bf16, not quantized a second time",
        ),
    ),
    _start,
)  # fmt: skip
