"""FlashInfer on NVIDIA GPUs: decode over a paged cache of keys and values, by CUDA cores or tensor cores.

Facts are from flashinfer-python 0.7.2.post1: decode.py (BatchDecodeWithPagedKVCacheWrapper: shapes; plan comes before,
run is the timed call), jit/attention/modules.py (e4m3 beside 16-bit queries), include/flashinfer/utils.cuh (head
dimensions, heads that share keys), jit/cpp_ext.py and jit/env.py (where it looks for a compiler and compiled kernels).
"""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codesign.gpu.rounding import held
from codesign.profiler.kernel import AttentionCase
from codesign.profiler.libraries import gpu
from codesign.profiler.libraries.adapter import AttentionRow, Library, import_quietly, too_old
from codesign.profiler.reference import AttentionInputs, rounded
from codesign.profiler.repeated import without_repetition
from codesign.profiler.weights import TORCH_NAMES, Float32

PAGE_TOKENS = 16
_WORKSPACE_BYTES = 128 * 2**20
_PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp16"}  # of queries, by the format of keys and values
_HEAD_DIMS, _SHARING_HEADS = (64, 128, 256), (1, 2, 3, 4, 6, 8, 16)
_TOOLKIT = Path("/usr/local/cuda")


def _problem() -> str | None:
    return gpu.problem() or too_old("flashinfer-python", 0, 7) or _no_compiler()


def _no_compiler() -> str | None:
    compiled = importlib.util.find_spec("flashinfer_jit_cache") is not None
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or shutil.which("nvcc") or _TOOLKIT.exists()
    if compiled or toolkit:
        return None
    return "FlashInfer compiles its kernels but there is no nvcc; install the CUDA toolkit or flashinfer-jit-cache"


@functools.cache
def _workspace() -> Any:
    """Return the memory of partial results; all calls run in one stream and share it."""
    import torch

    return torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=gpu.DEVICE)


def paged(values: Float32) -> Float32:
    """Return [batch, pages, tokens of a page, heads, head_dim] of [batch, heads, tokens, head_dim]."""
    batch, heads, tokens, head_dim = values.shape
    filled = np.pad(values.transpose(0, 2, 1, 3), ((0, 0), (0, -tokens % PAGE_TOKENS), (0, 0), (0, 0)))
    return filled.reshape(batch, -1, PAGE_TOKENS, heads, head_dim)


def _cached(values: Float32, kv_format: str) -> Any:
    """Return the pages of all sequences on the GPU, where sequences and heads that repeat are repeated."""
    import torch

    pages = paged(_held(without_repetition(values), kv_format))
    batch, heads = values.shape[:2]
    there = gpu.tensor(pages, "fp16").to(torch.float8_e4m3fn) if kv_format == "fp8" else gpu.tensor(pages, kv_format)
    return there.expand(batch, -1, -1, heads, -1).flatten(0, 1).contiguous()


def _held(values: Float32, kv_format: str) -> Float32:
    return held(values, kv_format) if kv_format == "fp8" else rounded(values, kv_format)


def _pack(kv_format: str, tensor_cores: bool) -> Callable[[AttentionInputs, AttentionCase], Any]:
    def pack(inputs: AttentionInputs, case: AttentionCase) -> Any:
        import torch

        keys, values = _cached(inputs.k, kv_format), _cached(inputs.v, kv_format)
        kind = import_quietly("flashinfer").BatchDecodeWithPagedKVCacheWrapper
        wrapper = kind(_workspace(), "NHD", use_tensor_cores=tensor_cores)
        wrapper.plan(
            *_page_table(case), case.heads, case.kv_heads, case.head_dim, PAGE_TOKENS,
            q_data_type=getattr(torch, TORCH_NAMES[_PRECISIONS[kv_format]]), kv_data_type=keys.dtype,
        )  # fmt: skip
        return wrapper, (keys, values)

    return pack


def _page_table(case: AttentionCase) -> tuple[Any, Any, Any]:
    """Return where the pages of each sequence begin, which they are, and the tokens in the last of them."""
    pages = -(-case.kv_tokens // PAGE_TOKENS)
    starts = np.arange(case.batch + 1) * pages
    in_last = np.full(case.batch, case.kv_tokens - (pages - 1) * PAGE_TOKENS)
    first, last = gpu.integers(starts, np.int32), gpu.integers(in_last, np.int32)
    return first, gpu.integers(np.arange(case.batch * pages), np.int32), last


def _call(q: Any, cache: Any) -> Any:
    wrapper, pages = cache
    return wrapper.run(q, pages)


def _with_token(output: Any) -> Float32:
    return gpu.to_float32(output)[:, :, None]


def _head_dim(case: AttentionCase) -> str | None:
    return None if case.head_dim in _HEAD_DIMS else f"head dimension {case.head_dim} is none of {_HEAD_DIMS}"


def _sharing(case: AttentionCase) -> str | None:
    sharing = case.heads // case.kv_heads
    if sharing in _SHARING_HEADS:
        return None
    return f"{sharing} heads of queries share one of keys; without tensor cores it takes {_SHARING_HEADS}"


def _row(name: str, kv_format: str, tensor_cores: bool) -> AttentionRow:
    precision = _PRECISIONS[kv_format]
    limits = (gpu.one_token, _head_dim, gpu.needs_capability(*((7, 5) if kv_format == "fp16" else (8, 0))))
    return AttentionRow(
        name, kv_format, precision, lambda values: _held(values, kv_format), 8 if kv_format == "fp8" else 16,
        lambda q: gpu.tensor(q[:, :, 0], precision), _pack(kv_format, tensor_cores), _call, _with_token,
        q_precision=precision, limits=limits if tensor_cores else (*limits, _sharing),
        note=f"pages of {PAGE_TOKENS} tokens, planned before the timed call", device="cuda",
    )  # fmt: skip


LIBRARY = Library(
    "flashinfer", ("flashinfer-python", "torch"), (), gpu.start,
    attentions=(
        *(_row("batch_decode", kv_format, False) for kv_format in _PRECISIONS),
        *(_row("batch_decode_tensor_cores", kv_format, True) for kv_format in ("bf16", "fp16")),
    ),
    problem=_problem, device="cuda",
)  # fmt: skip
