"""What a kernel should compute, in numpy float64: its weights times activations as it rounds them; attention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.profiler.kernel import AttentionCase
from codesign.profiler.weights import Exact, Float32, Weights, installed_torch, quantize
from codesign.quantize.kv_cache import bf16_scaled
from codesign.schemes.catalog import parse_scheme

_BLOCK_ROWS = 256
# Schemes whose weights are rounded as some kernels round activations.
_INT8, _E4M3, _E4M3_CHANNEL = parse_scheme("W8A8"), parse_scheme("FP8"), parse_scheme("FP8-channel")


def rounded(values: Float32, precision: str) -> Float32:
    """Return the values as that precision holds them, ties to even; "fp32" changes nothing."""
    if precision == "fp32":
        return values
    if precision == "fp16":
        return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    kept: Float32 = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return kept


def in_groups(values: NDArray[Any], group: int) -> NDArray[Any]:
    """Return [rows, groups, group] of [rows, k]; the last group is filled with zeros."""
    rows, k = values.shape
    groups = -(-k // group)
    padded = np.zeros((rows, groups * group), dtype=values.dtype)
    padded[:, :k] = values
    return padded.reshape(rows, groups, group)


def _largest(values: Float32, group: int) -> Float32:
    """Return the largest magnitude of each group, never zero."""
    top = np.abs(in_groups(values, group)).max(axis=2)
    return np.where(top > 0, top, np.float32(1))


@dataclass(frozen=True, slots=True)
class QuantizedActivations:
    """Activations [m, k] as codes with one scale per group: value = (code - zero) x scale."""

    codes: NDArray[np.int16]
    scales: Float32
    zero: int
    group: int

    def dequantized(self) -> Exact:
        """Return the values that the codes stand for."""
        spread = np.repeat(self.scales, self.group, axis=1)[:, : self.codes.shape[1]]
        values: Exact = (self.codes - self.zero).astype(np.float64) * spread
        return values


def quantize_int8(x: Float32, group: int) -> QuantizedActivations:
    """Return symmetric int8 activations with one scale per token and group; the largest value is 127 of it."""
    scales = _largest(x, group) / np.float32(127)
    spread = np.repeat(scales, group, axis=1)[:, : x.shape[1]]
    return QuantizedActivations(np.rint(x / spread).astype(np.int16), scales, 0, group)


def _largest_of_all(x: Float32) -> float:
    """Return the largest magnitude, never zero."""
    return float(np.abs(x).max()) or 1.0


def quantize_tensor_int8(x: Float32) -> QuantizedActivations:
    """Return symmetric int8 activations with one scale for all of them."""
    scale = np.float32(_largest_of_all(x) / 127)
    codes = np.clip(np.rint(x / scale), -127, 127).astype(np.int16)
    return QuantizedActivations(codes, np.full((x.shape[0], 1), scale, np.float32), 0, x.shape[1])


def quantize_tensor_uint8(x: Float32) -> QuantizedActivations:
    """Return 8-bit activations with one scale and zero point for all of them, 0 being exact."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255).astype(np.int16)
    return QuantizedActivations(codes, np.full((x.shape[0], 1), scale, np.float32), zero, x.shape[1])


# How schemes round activations before the multiplication, whatever they are given in.
ROUNDINGS: Mapping[str, Callable[[Float32], Exact]] = MappingProxyType(
    {
        "none": lambda x: x.astype(np.float64),
        "int8 per token": lambda x: quantize_int8(x, x.shape[1]).dequantized(),
        "int8 per 32": lambda x: quantize_int8(x, 32).dequantized(),
        "int8 per 64": lambda x: quantize_int8(x, 64).dequantized(),
        "int8 per 128": lambda x: quantize_int8(x, 128).dequantized(),
        "int8 per token, bf16 scale": lambda x: quantize(x, _INT8, "bf16").dequantized(),
        "int8 per tensor": lambda x: quantize_tensor_int8(x).dequantized(),
        "uint8 per tensor": lambda x: quantize_tensor_uint8(x).dequantized(),
        "e4m3 per tensor": lambda x: quantize(x, _E4M3).dequantized(),
        "e4m3 per tensor, bf16 scale": lambda x: quantize(x, _E4M3, "bf16").dequantized(),
        "e4m3 per token": lambda x: quantize(x, _E4M3_CHANNEL).dequantized(),
        "e4m3 per token, bf16 scale": lambda x: quantize(x, _E4M3_CHANNEL, "bf16").dequantized(),
    }
)


def product(x: Exact, weights: Weights) -> Exact:
    """Return x [m, k] times the weights [n, k] transposed, a block of rows after the other to stay in the caches."""
    blocks = [slice(first, first + _BLOCK_ROWS) for first in range(0, weights.row_count, _BLOCK_ROWS)]
    return np.hstack([x @ weights.part(rows).dequantized().T for rows in blocks])


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Queries [batch, heads, q_tokens, head_dim], keys and values [batch, kv_heads, kv_tokens, head_dim]."""

    q: Float32
    k: Float32
    v: Float32


def attention_inputs(case: AttentionCase) -> AttentionInputs:
    """Return the seeded normal inputs of a case, the same for every kernel that runs it."""
    sizes = (case.batch, case.heads, case.kv_heads, case.q_tokens, case.kv_tokens, case.head_dim)
    random = np.random.default_rng((case.seed, *sizes))
    cached = (case.batch, case.kv_heads, case.kv_tokens, case.head_dim)
    q = random.standard_normal((case.batch, case.heads, case.q_tokens, case.head_dim), dtype=np.float32)
    k = random.standard_normal(cached, dtype=np.float32)
    return AttentionInputs(q, k, random.standard_normal(cached, dtype=np.float32))


def quantize_kv(values: Float32, bits: int) -> Float32:
    """Return keys or values [..., head_dim] as our kernels' cache holds them in integers."""
    held: Float32 = bf16_scaled(installed_torch().from_numpy(values), bits).numpy()
    return held


def visible(q_tokens: int, kv_tokens: int) -> NDArray[np.bool_]:
    """Return which cached tokens each new one sees: the new tokens are the last of the cached ones."""
    return np.tri(q_tokens, kv_tokens, kv_tokens - q_tokens, dtype=np.bool_)


def attention(q: Exact, k: Exact, v: Exact) -> Exact:
    """Return causal attention with the usual scale; heads of queries share the heads of keys and values in turn."""
    shared = q.shape[1] // k.shape[1]
    mask = visible(q.shape[2], k.shape[2])
    out = np.empty_like(q)
    for batch, head in np.ndindex(q.shape[:2]):
        scores = q[batch, head] @ k[batch, head // shared].T * q.shape[3] ** -0.5
        scores[~mask] = -np.inf
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[batch, head] = scores / scores.sum(axis=1, keepdims=True) @ v[batch, head // shared]
    return out
