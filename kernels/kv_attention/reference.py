"""The exact result: how a cache rounds keys and values, and attention over what it then holds, in float64."""

import numpy as np
from numpy.typing import NDArray

LIMITS = {"int8": 127, "int4": 7}


def bf16_above(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the smallest bfloat16 numbers that are not below x >= 0."""
    return ((x.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)


def bf16_nearest(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest bfloat16 numbers, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def dequantized(x: NDArray[np.float32], kv_format: str) -> NDArray[np.float32]:
    """Return keys or values [..., head_dim] as a cache holds them; integers have one scale per token and head."""
    if kv_format == "fp16":
        return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)
    if kv_format == "bf16":
        return bf16_nearest(x)
    limit = LIMITS[kv_format]
    largest = np.abs(x).max(axis=-1, keepdims=True)
    scale = bf16_above(largest / np.float32(limit))
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 1e-37)
    return np.clip(np.rint(x * inverse), -limit, limit).astype(np.float32) * scale


def attention(
    q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], scale: float | None = None
) -> NDArray[np.float64]:
    """Return softmax(scale · q · kᵀ) · v in float64 for q [b, heads, q_tokens, d] and k, v [b, kv_heads, tokens, d]."""
    batch, heads, q_tokens, head_dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.astype(np.float64).reshape(batch, kv_heads, -1, head_dim)
    scores = grouped @ k.astype(np.float64).swapaxes(-1, -2) * (head_dim**-0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = weights @ v.astype(np.float64) / weights.sum(axis=-1, keepdims=True)
    return out.reshape(batch, heads, q_tokens, head_dim)
