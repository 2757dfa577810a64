"""FlashAttention 2 on NVIDIA GPUs: decode over a contiguous cache of keys and values.

Facts are from flash-attn 2.8.3.post2: flash_attn/flash_attn_interface.py (flash_attn_with_kvcache) and
csrc/flash_attn/flash_api.cpp (mha_fwd_kvcache: types, head dimensions, compute capability).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import AttentionCase
from codesign.profiler.libraries import gpu
from codesign.profiler.libraries.adapter import AttentionRow, Library, import_quietly, too_old
from codesign.profiler.reference import AttentionInputs, rounded
from codesign.profiler.weights import Float32

_HEAD_DIM_MAX, _HEAD_DIM_STEP = 256, 8


def _problem() -> str | None:
    return gpu.problem() or too_old("flash-attn", 2, 8)


def by_token(values: Float32, precision: str) -> Any:
    """Return [batch, tokens, heads, head_dim] of [batch, heads, tokens, head_dim]."""
    return gpu.tensor(values.transpose(0, 2, 1, 3), precision)


def _pack(precision: str) -> Callable[[AttentionInputs, AttentionCase], Any]:
    def pack(inputs: AttentionInputs, case: AttentionCase) -> Any:
        lengths = gpu.integers(np.full(case.batch, case.kv_tokens), np.int32)
        attend = import_quietly("flash_attn").flash_attn_with_kvcache
        return by_token(inputs.k, precision), by_token(inputs.v, precision), lengths, attend

    return pack


def _call(q: Any, cache: Any) -> Any:
    k, v, lengths, attend = cache
    return attend(q, k, v, cache_seqlens=lengths, causal=True)


def by_head(output: Any) -> Float32:
    """Return [batch, heads, tokens, head_dim] of [batch, tokens, heads, head_dim]."""
    return gpu.to_float32(output).transpose(0, 2, 1, 3)


def _head_dim(case: AttentionCase) -> str | None:
    if case.head_dim % _HEAD_DIM_STEP == 0 and case.head_dim <= _HEAD_DIM_MAX:
        return None
    return f"head dimension {case.head_dim} is no multiple of {_HEAD_DIM_STEP} up to {_HEAD_DIM_MAX}"


def _row(precision: str) -> AttentionRow:
    return AttentionRow(
        "with_kvcache", precision, precision, lambda values: rounded(values, precision), 16,
        lambda q: by_token(q, precision), _pack(precision), _call, by_head, q_precision=precision,
        limits=(gpu.one_token, _head_dim, gpu.needs_capability(8, 0)), device="cuda",
    )  # fmt: skip


LIBRARY = Library(
    "flash-attn", ("flash-attn", "torch"), (), gpu.start, attentions=(_row("bf16"), _row("fp16")), problem=_problem,
    device="cuda",
)  # fmt: skip
