"""Kernels of whole steps: transformer blocks with random weights whose multiplications one kernel carries out.

A module of adapters like `codesign.profiler.libraries`: the same children, rounds and records measure its cases.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from codesign import native
from codesign.errors import InputError
from codesign.model.groups import fused_groups
from codesign.model.layers import Attention, Model
from codesign.profiler.check import FLOOR_FRACTION, PLAIN_FACTOR, Check, deviation
from codesign.profiler.kernel import BlockCase, BlockSizes, GemmCase, Kernel, LibraryState, Prepared
from codesign.profiler.libraries import library_states as states_of_libraries
from codesign.profiler.libraries import torch_cpu
from codesign.profiler.linear import Linear, LinearKernel, linear_kernels
from codesign.profiler.transformer import (
    INTEGER_KV_BITS,
    Attend,
    BlockParts,
    block_weights,
    frame,
    hidden_state,
    own_attention,
    run_blocks,
    torch_attention,
)
from codesign.profiler.weights import Exact, Float32, Weights
from codesign.schemes.kv import parse_kv
from codesign.units import BITS_PER_BYTE

MODULE = "codesign.profiler.blocks"
OWN_HEAD_DIMS = (16, 256)
_GROUPS = frozenset({"qkv", "o", "gate_up", "down"})
_HIDDEN = {"FP32": "float32", "FP16": "float16"}  # else bf16


@dataclass(frozen=True, slots=True)
class AttentionOfBlocks:
    """One way to attend in a block; `make(case, block, dtype)` fills its cache.

    Layers of other libraries than torch and its own use it only for formats that torch does not have.
    """

    library: str
    name: str
    kv_formats: tuple[str, ...]
    make: Callable[[BlockCase, int, Any], Attend]
    problem: Callable[[BlockCase], str | None]


def _own_problem(case: BlockCase) -> str | None:
    low, high = OWN_HEAD_DIMS
    if case.phase == "prefill":
        return "our attention kernel has no causal mask: it decodes only"
    if case.sizes.head_dim % low or case.sizes.head_dim > high:
        return f"head_dim = {case.sizes.head_dim} is not a multiple of {low} up to {high}"
    return native.absence()


ATTENTIONS = (
    AttentionOfBlocks("torch", "sdpa", ("bf16", "fp16"), torch_attention, lambda _case: None),
    AttentionOfBlocks("codesign", "kv_attention", ("bf16", "fp16", "int8", "int4"), own_attention, _own_problem),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBlocks(Prepared):
    """`references()` returns what the blocks compute in float32, and in plain torch at the hidden state's precision."""

    references: Callable[[], tuple[Float32, Float32]]


def all_kernels() -> tuple[Kernel, ...]:
    """Return every kernel that can be a linear layer, with each attention."""
    return tuple(_kernel(linear, attention) for linear in linear_kernels() for attention in ATTENTIONS)


def library_states() -> tuple[LibraryState, ...]:
    """Return which libraries are here."""
    return states_of_libraries()


def block_sizes(model: Model) -> BlockSizes:
    """Return the sizes of a model's first block; InputError for a structure that these blocks do not have."""
    block = model.blocks[0]
    groups = {group.name: group for group in fused_groups(model) if group.block_index == block.index}
    if not isinstance(block.attention, Attention) or set(groups) != _GROUPS:
        raise InputError(
            f"{model.name}: --blocks runs blocks of softmax attention and one MLP; this model's have "
            f"{', '.join(groups)}. Measure its kernels without --blocks."
        )
    one = block.attention
    gated = len(groups["gate_up"].layers) == 2 or groups["gate_up"].n == 2 * groups["down"].k
    return BlockSizes(model.hidden, one.heads, one.kv_heads, one.head_dim, groups["down"].k, gated)


def _kernel(linear: LinearKernel, attention: AttentionOfBlocks) -> Kernel:
    foreign = attention.library not in ("torch", linear.library.name)
    kv_formats = tuple(name for name in attention.kv_formats if not foreign or name in INTEGER_KV_BITS)

    def refuses(case: Any) -> str | None:
        if case.kv_format not in kv_formats:
            return f"{attention.name} has no {case.kv_format} cache here; it has {', '.join(kv_formats)}"
        problems = (linear.refuses(_gemm_case(linear, case, shape)) for shape in case.shapes.values())
        return attention.problem(case) or next((problem for problem in problems if problem), None)

    name, note = f"{linear.row.name}+{attention.name}", linear.row.note
    return Kernel(
        linear.library.name, name, linear.row.scheme, refuses, lambda case, _: prepare(linear, attention, case), note
    )


def _gemm_case(linear: LinearKernel, case: BlockCase, shape: tuple[int, int]) -> GemmCase:
    return GemmCase(linear.row.scheme, case.batch * case.query_tokens, *shape, case.threads, seed=case.seed)


def prepare(linear: LinearKernel, attention: AttentionOfBlocks, case: BlockCase) -> PreparedBlocks:
    """Return the blocks ready to be timed: weights packed, caches filled."""
    import torch

    torch_cpu.start(case.threads)
    linear.library.start(case.threads)
    dtype = getattr(torch, _HIDDEN.get(linear.row.scheme, "bfloat16"))
    read: list[float] = []

    def layer(weights: Weights, shape: tuple[int, int]) -> Linear:
        read.append(linear.read_bytes(weights))
        return linear.layer(weights, _gemm_case(linear, case, shape))

    blocks = [
        BlockParts(_layers(linear, case, index, layer), attention.make(case, index, _kv_dtype(case, dtype)))
        for index in range(case.blocks)
    ]
    x, shared = torch.from_numpy(hidden_state(case)).to(dtype), frame(case, dtype)
    return PreparedBlocks(
        run=lambda _copy: run_blocks(x, blocks, shared),
        copies=1,
        output=torch_cpu.to_float32,
        reference=lambda: _references(linear, case, dtype)[0].astype(np.float64),
        read_bytes=sum(read) + kv_bytes(case),
        math_dtype=linear.row.math_dtype,
        references=lambda: _references(linear, case, dtype),
    )


def kv_bytes(case: BlockCase) -> float:
    """Return the bytes of all keys and values that a decode step reads; a prefill has them in its caches."""
    bits = parse_kv(case.kv_format).bits if case.phase == "decode" else 0.0
    return case.kv_element_count * bits / BITS_PER_BYTE


def _kv_dtype(case: BlockCase, hidden: Any) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case.kv_format, hidden)


def _layers(
    linear: LinearKernel, case: BlockCase, block: int, make: Callable[[Weights, tuple[int, int]], Linear]
) -> Mapping[str, Linear]:
    """Return the layers of one block, made of the same weights in the same order every time."""
    return MappingProxyType(
        {
            group: make(linear.quantized(block_weights(case, block, group)), shape)
            for group, shape in case.shapes.items()
        }
    )


def _references(linear: LinearKernel, case: BlockCase, dtype: Any) -> tuple[Float32, Float32]:
    """Return the exact and the plain output, block by block: the weights of one are in memory at a time."""
    import torch

    x = torch.from_numpy(hidden_state(case)).to(dtype)
    exact, plain = x.float(), x
    exact_frame, plain_frame = frame(case, torch.float32), frame(case, dtype)
    kv_dtype = _kv_dtype(case, dtype)
    for index in range(case.blocks):
        weights = {group: linear.quantized(block_weights(case, index, group)) for group in case.shapes}
        in_exact = {group: linear.plain(one, torch.float32) for group, one in weights.items()}
        exact = run_blocks(exact, [BlockParts(in_exact, torch_attention(case, index, torch.float32))], exact_frame)
        del in_exact
        in_plain = {group: linear.plain(one, dtype) for group, one in weights.items()}
        plain = run_blocks(plain, [BlockParts(in_plain, torch_attention(case, index, kv_dtype))], plain_frame)
    return exact.numpy(), plain.float().numpy()


def check_output(prepared: PreparedBlocks, _case: BlockCase) -> Check:
    """Return whether a step is within twice the error of plain torch at that precision, against float32."""
    output = np.asarray(prepared.output(prepared.run(0)), dtype=np.float64)
    exact, plain = prepared.references()
    reference: Exact = exact.astype(np.float64)
    allowed = max(PLAIN_FACTOR * deviation(plain, reference).fraction, FLOOR_FRACTION)
    if not np.isfinite(output).all():
        return Check(None, allowed, False, f"{int((~np.isfinite(output)).sum())} outputs are not finite")
    found = deviation(output, reference).fraction
    reason = "" if found <= allowed else f"the output is off by {found:.2e} of its norm; {allowed:.2e} is allowed"
    return Check(found, allowed, not reason, reason)
