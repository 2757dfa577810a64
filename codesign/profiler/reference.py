"""What a kernel should compute, in numpy float64: weights as a scheme stores them, activations as it rounds them."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codesign.profiler.kernel import AttentionCase
from codesign.schemes.scheme import PerBlock, PerGroup, PerTensor, Scheme

Exact = NDArray[np.float64]
Float32 = NDArray[np.float32]

_BLOCK_ROWS = 256
E4M3_MAX = 448.0  # OCP 8-bit floating point specification 1.0, E4M3
# QLoRA, appendix E: the 16 values of NF4.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def rounded(values: Float32, precision: str) -> Float32:
    """Return the values as that precision holds them, ties to even; "fp32" changes nothing."""
    if precision == "fp32":
        return values
    if precision == "fp16":
        return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    kept: Float32 = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return kept


class Weights(Protocol):
    """A weight matrix [n, k] as a scheme stores it."""

    def dequantized(self) -> Exact:
        """Return the values that the stored ones stand for."""

    @property
    def row_count(self) -> int:
        """Return n."""

    def rolled(self, rows: int) -> "Weights":
        """Return the matrix with its rows moved down by so many, the last ones to the top."""

    def part(self, rows: slice) -> "Weights":
        """Return some of the rows."""


@dataclass(frozen=True, slots=True)
class FloatWeights:
    """Weights in 16 or 32 bits without scales; `values` already have that precision."""

    values: Float32

    def dequantized(self) -> Exact:
        """Return the values in float64."""
        return self.values.astype(np.float64)

    @property
    def row_count(self) -> int:
        """Return n."""
        return len(self.values)

    def rolled(self, rows: int) -> "FloatWeights":
        """Return the matrix with its rows moved down."""
        return FloatWeights(np.roll(self.values, rows, axis=0))

    def part(self, rows: slice) -> "FloatWeights":
        """Return some of the rows."""
        return FloatWeights(self.values[rows])


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """Codes [n, k] with scales [n, groups]: value = (code - zero) x scale, or levels[code] x scale.

    `group` codes along k share a scale, the last group may be shorter. Integers without zero points are signed; with
    `zeros` [n, groups] codes and zero points count from 0.
    """

    codes: NDArray[np.int16]
    scales: Float32
    group: int
    zeros: NDArray[np.int16] | None = None
    levels: tuple[float, ...] | None = None

    def dequantized(self) -> Exact:
        """Return the exact values of codes and scales."""
        if self.levels is not None:
            values: Exact = np.asarray(self.levels, dtype=np.float64)[self.codes]
        elif self.zeros is not None:
            values = (self.codes - self.spread(self.zeros)).astype(np.float64)
        else:
            values = self.codes.astype(np.float64)
        values *= self.spread(self.scales)
        return values

    def rolled(self, rows: int) -> "QuantizedWeights":
        """Return the matrix with its rows moved down, scales and zero points with them."""
        zeros = None if self.zeros is None else np.roll(self.zeros, rows, axis=0)
        codes, scales = np.roll(self.codes, rows, axis=0), np.roll(self.scales, rows, axis=0)
        return QuantizedWeights(codes, scales, self.group, zeros, self.levels)

    @property
    def row_count(self) -> int:
        """Return n."""
        return len(self.codes)

    def part(self, rows: slice) -> "QuantizedWeights":
        """Return some of the rows."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return QuantizedWeights(self.codes[rows], self.scales[rows], self.group, zeros, self.levels)

    def spread(self, per_group: NDArray[Any]) -> NDArray[Any]:
        """Return one value per code from one per group."""
        return np.repeat(per_group, self.group, axis=1)[:, : self.codes.shape[1]]


def quantize(w: Float32, scheme: Scheme, scale_precision: str = "fp32") -> Weights:
    """Return the weights [n, k] in a scheme, rounded to nearest, with scales that a library keeps in that precision."""
    number = scheme.weights.number
    if number in ("fp32", "bf16", "fp16"):
        return FloatWeights(rounded(w, number))
    group = _group_size(scheme, w.shape[1])
    if number == "nf4":
        return _to_levels(w, group, NF4_LEVELS, scale_precision)
    if number == "e4m3":
        return _to_levels(w, group, e4m3_levels(), scale_precision, isinstance(scheme.weights.granularity, PerTensor))
    return _to_integers(w, scheme, group, scale_precision)


def _group_size(scheme: Scheme, k: int) -> int:
    match scheme.weights.granularity:
        case PerGroup(size):
            return size
        case PerBlock():
            raise NotImplementedError(f"{scheme} has scales per block of rows and columns")
        case _:
            return k


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


def _to_integers(w: Float32, scheme: Scheme, group: int, scale_precision: str) -> QuantizedWeights:
    bits = int(scheme.weights.bits)
    top = 2 ** (bits - 1) - 1
    if not scheme.weights.symmetric:
        return _to_asymmetric(w, bits, group, scale_precision)
    largest = _largest(w, group)
    if isinstance(scheme.weights.granularity, PerTensor):
        largest = np.full_like(largest, largest.max())
    weights = QuantizedWeights(np.empty(w.shape, np.int16), rounded(largest / top, scale_precision), group)
    np.clip(np.rint(w / weights.spread(weights.scales)), -top - 1, top, out=weights.codes, casting="unsafe")
    return weights


def _to_asymmetric(w: Float32, bits: int, group: int, scale_precision: str) -> QuantizedWeights:
    low = np.minimum(in_groups(w, group).min(axis=2), 0)
    high = np.maximum(in_groups(w, group).max(axis=2), 0)
    top = 2**bits - 1
    span = np.where(high > low, high - low, np.float32(1))
    scales = rounded((span / top).astype(np.float32), scale_precision)
    zeros = np.clip(np.rint(-low / scales), 0, top).astype(np.int16)
    weights = QuantizedWeights(np.empty(w.shape, np.int16), scales, group, zeros)
    np.clip(np.rint(w / weights.spread(scales)) + weights.spread(zeros), 0, top, out=weights.codes, casting="unsafe")
    return weights


def _to_levels(
    w: Float32, group: int, levels: tuple[float, ...], scale_precision: str, per_tensor: bool = False
) -> QuantizedWeights:
    largest = _largest(w, group)
    if per_tensor:
        largest = np.full_like(largest, largest.max())
    top = np.float32(max(level for level in levels if level < math.inf))
    scales = rounded(largest / top, scale_precision)
    weights = QuantizedWeights(np.empty(w.shape, np.int16), scales, group, levels=levels)
    weights.codes[...] = nearest_level(w / weights.spread(weights.scales), levels)
    return weights


def nearest_level(values: Float32, levels: tuple[float, ...]) -> NDArray[np.int16]:
    """Return for each value the index of the nearest level; `levels` may come in any order."""
    table = np.asarray(levels)
    order = np.argsort(table, kind="stable")
    middles = (table[order][1:] + table[order][:-1]) / 2
    return order[np.searchsorted(middles, values)].astype(np.int16)


@functools.cache
def e4m3_levels() -> tuple[float, ...]:
    """Return the value of each of the 256 bytes of E4M3; infinity for the two that are no numbers."""
    values = []
    for byte in range(256):
        exponent, mantissa = (byte >> 3) & 15, byte & 7
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        values.append((-1 if byte & 128 else 1) * (size if size <= E4M3_MAX else math.inf))
    return tuple(values)


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


def quantize_int8(x: Float32, group: int, steps: float = 127, scale_precision: str = "fp32") -> QuantizedActivations:
    """Return symmetric int8 activations with one scale per token and group; the largest value is `steps` of it."""
    scales = rounded(_largest(x, group) / np.float32(steps), scale_precision)
    spread = np.repeat(scales, group, axis=1)[:, : x.shape[1]]
    return QuantizedActivations(np.clip(np.rint(x / spread), -128, 127).astype(np.int16), scales, 0, group)


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


def quantize_tensor_e4m3(x: Float32) -> tuple[NDArray[np.int16], np.float32]:
    """Return E4M3 bytes of the activations and the one scale of them all."""
    scale = np.float32(_largest_of_all(x) / E4M3_MAX)
    return nearest_level(x / scale, e4m3_levels()), scale


def _e4m3_values(x: Float32) -> Exact:
    codes, scale = quantize_tensor_e4m3(x)
    values: Exact = np.asarray(e4m3_levels())[codes] * np.float64(scale)
    return values


# How schemes round activations before the multiplication, whatever they are given in.
ROUNDINGS: Mapping[str, Callable[[Float32], Exact]] = MappingProxyType(
    {
        "none": lambda x: x.astype(np.float64),
        "int8 per token": lambda x: quantize_int8(x, x.shape[1]).dequantized(),
        "int8 per 32": lambda x: quantize_int8(x, 32).dequantized(),
        "int8 per 64": lambda x: quantize_int8(x, 64).dequantized(),
        "int8 per 128": lambda x: quantize_int8(x, 128).dequantized(),
        "int8 per token, bf16 scale": lambda x: quantize_int8(x, x.shape[1], 127.5, "bf16").dequantized(),
        "int8 per tensor": lambda x: quantize_tensor_int8(x).dequantized(),
        "uint8 per tensor": lambda x: quantize_tensor_uint8(x).dequantized(),
        "e4m3 per tensor": _e4m3_values,
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
    """Return keys or values [..., head_dim] as integers hold them, one bf16 scale per vector, no zero point.

    Scales are rounded up, so that the largest value is never clipped.
    """
    top = 2 ** (bits - 1) - 1
    scale = bf16_above(np.abs(values).max(axis=-1, keepdims=True) / np.float32(top))
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    held: Float32 = np.clip(np.rint(values * inverse), -top, top).astype(np.float32) * scale
    return held


def bf16_above(values: Float32) -> Float32:
    """Return the smallest bf16 numbers that are not below the values, which are not negative."""
    above: Float32 = ((values.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return above


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
