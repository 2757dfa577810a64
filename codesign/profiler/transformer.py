"""Transformer blocks in torch whose linear layers and attention are given from outside: Llama's structure.

Norms have gains of one and linear layers no biases; neither changes what is read or computed by more than a thousandth.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codesign.profiler.kernel import BlockCase, BlockSizes
from codesign.profiler.linear import Linear
from codesign.profiler.reference import quantize_kv, rounded
from codesign.profiler.weights import Float32

ROTARY_BASE = 10000.0  # arXiv 2104.09864, section 3.4.3
NORM_EPSILON = 1e-5
INTEGER_KV_BITS = {"int8": 8, "int4": 4}
Attend = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, slots=True)
class BlockParts:
    """What one block computes with: linear layers by fused group, and attention that keeps the new keys and values."""

    linears: Mapping[str, Linear]
    attend: Attend


@dataclass(frozen=True, slots=True)
class Frame:
    """What all blocks of a step share: sizes, new tokens per sequence, cos and sin of their positions."""

    sizes: BlockSizes
    batch: int
    query_tokens: int
    cos: Any
    sin: Any


def frame(case: BlockCase, dtype: Any) -> Frame:
    """Return the frame of a case; the new tokens are the last of the context."""
    import torch

    dim = case.sizes.head_dim
    positions = torch.arange(case.context_tokens - case.query_tokens, case.context_tokens, dtype=torch.float32)
    angles = positions[:, None] * ROTARY_BASE ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.cat((angles, angles), dim=1)
    return Frame(case.sizes, case.batch, case.query_tokens, angles.cos().to(dtype), angles.sin().to(dtype))


def run_blocks(x: Any, blocks: Sequence[BlockParts], shared: Frame) -> Any:
    """Return the hidden state [batch x query_tokens, hidden] behind the blocks."""
    for block in blocks:
        x = x + block.linears["o"](_attended(_norm(x), block, shared))
        x = x + block.linears["down"](_activated(block.linears["gate_up"](_norm(x)), shared.sizes))
    return x


def _norm(x: Any) -> Any:
    import torch

    return torch.nn.functional.rms_norm(x, (x.shape[1],), eps=NORM_EPSILON)


def _attended(x: Any, block: BlockParts, shared: Frame) -> Any:
    sizes, rows = shared.sizes, (shared.batch, shared.query_tokens)
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    parts = block.linears["qkv"](x).split([count * sizes.head_dim for count in heads], dim=1)
    q, k, v = (
        part.reshape(*rows, count, sizes.head_dim).transpose(1, 2) for part, count in zip(parts, heads, strict=True)
    )
    out = block.attend(_rotated(q, shared), _rotated(k, shared), v)
    return out.transpose(1, 2).reshape(x.shape[0], sizes.heads * sizes.head_dim)


def _rotated(x: Any, shared: Frame) -> Any:
    import torch

    first, second = x.chunk(2, dim=-1)
    return x * shared.cos + torch.cat((-second, first), dim=-1) * shared.sin


def _activated(x: Any, sizes: BlockSizes) -> Any:
    import torch

    if not sizes.gated:
        return torch.nn.functional.gelu(x)
    gate, up = x.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def cached_tokens(case: BlockCase, block: int) -> tuple[Float32, Float32]:
    """Return seeded keys and values [batch, kv_heads, tokens, head_dim] of the tokens before the new ones."""
    tokens = case.context_tokens - case.query_tokens
    random = np.random.default_rng((case.seed, block, 1))
    shape = (case.batch, case.sizes.kv_heads, tokens, case.sizes.head_dim)
    return random.standard_normal(shape, dtype=np.float32), random.standard_normal(shape, dtype=np.float32)


def block_weights(case: BlockCase, block: int, group: str) -> Float32:
    """Return the seeded weights [n, k] of one multiplication, which keep the size of what they multiply."""
    n, k = case.shapes[group]
    random = np.random.default_rng((case.seed, block, 0, list(case.shapes).index(group)))
    w = random.standard_normal((n, k), dtype=np.float32)
    w *= np.float32(1 / math.sqrt(k))
    return w


def hidden_state(case: BlockCase) -> Float32:
    """Return the seeded hidden state [batch x query_tokens, hidden] before the blocks."""
    random = np.random.default_rng((case.seed, case.batch, case.query_tokens))
    return random.standard_normal((case.batch * case.query_tokens, case.sizes.hidden), dtype=np.float32)


def held(values: Float32, kv_format: str) -> Float32:
    """Return keys or values as a cache of this format holds them."""
    bits = INTEGER_KV_BITS.get(kv_format)
    return rounded(values, kv_format) if bits is None else quantize_kv(values, bits)


def torch_attention(case: BlockCase, block: int, dtype: Any) -> Attend:
    """Return torch's attention over a cache of a float type, which holds its values as the case's format does."""
    import torch

    size = (case.batch, case.sizes.kv_heads, case.context_tokens, case.sizes.head_dim)
    keys, values = (torch.zeros(size, dtype=dtype) for _ in range(2))
    start = case.context_tokens - case.query_tokens
    for cache, known in zip((keys, values), cached_tokens(case, block), strict=True):
        cache[:, :, :start] = torch.from_numpy(held(known, case.kv_format))
    exact = dtype == torch.float32 or case.kv_format in INTEGER_KV_BITS
    grouped, causal = case.sizes.heads != case.sizes.kv_heads, case.query_tokens > 1

    def attend(q: Any, k: Any, v: Any) -> Any:
        for cache, new in ((keys, k), (values, v)):
            cache[:, :, start:] = _held_tensor(new, case.kv_format) if exact else new
        out = torch.nn.functional.scaled_dot_product_attention(
            q.to(dtype), keys, values, is_causal=causal, enable_gqa=grouped
        )
        return out.to(q.dtype)

    return attend


def _held_tensor(new: Any, kv_format: str) -> Any:
    import torch

    return torch.from_numpy(held(new.float().contiguous().numpy(), kv_format))


def own_attention(case: BlockCase, block: int, _dtype: Any) -> Attend:
    """Return our own kernel's attention; each step writes its token at the same place again."""
    import torch

    from codesign.native.attention import KvCache, KvShape

    sizes = case.sizes
    cache = KvCache(KvShape(case.kv_format, case.batch, sizes.kv_heads, sizes.head_dim, case.context_tokens))
    known = cached_tokens(case, block)
    if known[0].shape[2]:
        cache.append(*known)
    start = case.context_tokens - 1

    def numbers(x: Any) -> Any:
        dense = x.contiguous()
        return dense.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else dense.float().numpy()

    def attend(q: Any, k: Any, v: Any) -> Any:
        cache.lengths[:] = start
        cache.append(numbers(k), numbers(v))
        out = torch.from_numpy(cache.attend(numbers(q), threads=case.threads))
        return (out.view(torch.bfloat16) if q.dtype == torch.bfloat16 else out).to(q.dtype)

    return attend
