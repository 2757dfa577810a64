"""Large cases of GPUs, made of smaller ones that repeat: a GPU takes milliseconds for what a CPU makes in minutes.

Weights repeat after so many rows, keys and values from head to head and from sequence to sequence. Nothing is read less
often: repetitions lie at places of their own in the GPU's memory, and each is attended to or multiplied in full.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from codesign.profiler.kernel import AttentionCase, Device, GemmCase
from codesign.profiler.reference import AttentionInputs
from codesign.profiler.weights import Exact, Float32

UNIQUE_ROWS = 512  # a multiple of the outputs that any kernel's layout keeps together


def unique_gemm(case: GemmCase, device: Device) -> GemmCase:
    """Return the multiplication by those rows of the weights that differ."""
    repeats = device == "cuda" and case.n % UNIQUE_ROWS == 0
    return replace(case, n=UNIQUE_ROWS) if repeats else case


def unique_attention(case: AttentionCase, device: Device) -> AttentionCase:
    """Return the attention of one sequence to one head of keys and values, where the others repeat it."""
    return replace(case, batch=1, heads=case.heads // case.kv_heads, kv_heads=1) if device == "cuda" else case


def repeated_inputs(inputs: AttentionInputs, case: AttentionCase) -> AttentionInputs:
    """Return the inputs of a case, of what `unique_attention` has; no memory is taken."""
    return AttentionInputs(*(repeated_heads(part, case.batch, heads) for part, heads in (
        (inputs.q, case.heads), (inputs.k, case.kv_heads), (inputs.v, case.kv_heads),
    )))  # fmt: skip


def repeated_heads(values: Any, batch: int, heads: int) -> Any:
    """Return [batch, heads, tokens, head_dim] of values of fewer sequences and heads, which repeat in turn."""
    count, few, tokens, head_dim = values.shape
    if (count, few) == (batch, heads):
        return values
    if few > 1:
        values = np.tile(values, (1, heads // few, 1, 1))
    return np.broadcast_to(values, (batch, heads, tokens, head_dim))


def repeated_columns(values: Exact, count: int) -> Exact:
    """Return [m, n] of outputs that repeat after fewer than n."""
    return np.tile(values, (1, count // values.shape[1]))


def without_repetition(values: Float32) -> Float32:
    """Return a writable array with size 1 where `values` repeats without memory of its own."""
    once: Float32 = values[tuple(slice(1) if step == 0 else slice(None) for step in values.strides)]
    return np.require(once, requirements="W")


def copies_of(packed: Any, count: int) -> tuple[Any, ...]:
    """Return so many copies of packed weights, each in memory of its own."""
    return (packed, *(copy.deepcopy(packed) for _ in range(count - 1)))
