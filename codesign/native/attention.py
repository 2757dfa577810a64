"""Attention over a quantized KV cache with the native kernels: numpy arrays in and out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.errors import InputError
from codesign.native import load
from codesign.native.packed import PackedWeights

KV_FORMATS = ("fp16", "bf16", "int8", "int4")  # by the native module's number
LONGEST_HEAD = 256
LINE_BYTES = 64
Numbers = NDArray[np.float32] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a cache holds: up to `capacity_tokens` tokens of `kv_heads` heads for each of `batch` sequences."""

    kv_format: str
    batch: int
    kv_heads: int
    head_dim: int
    capacity_tokens: int

    def __post_init__(self) -> None:
        if self.kv_format not in KV_FORMATS:
            raise InputError(f'"{self.kv_format}" is no KV format; use one of {", ".join(KV_FORMATS)}')
        if self.head_dim % 16 or not 16 <= self.head_dim <= LONGEST_HEAD:
            raise InputError(f"head_dim is {self.head_dim}; it must be a multiple of 16 up to {LONGEST_HEAD}")
        if min(self.batch, self.kv_heads, self.capacity_tokens) < 1:
            raise InputError(f"batch, kv_heads and capacity_tokens must be at least 1, not {self}")

    def native(self, heads: int, q_tokens: int) -> Any:
        """Return the shape as the native module takes it."""
        number = KV_FORMATS.index(self.kv_format)
        capacity = self.capacity_tokens
        return load().KvShape(number, self.batch, heads, self.kv_heads, self.head_dim, q_tokens, capacity)

    def read_bytes(self, tokens: int) -> float:
        """Return the bytes that attention over `tokens` tokens of every sequence must read: codes and scales."""
        bits = {"fp16": 16, "bf16": 16, "int8": 8, "int4": 4}[self.kv_format]
        scale_bytes = 4 if bits < 16 else 0
        return self.batch * self.kv_heads * tokens * (2 * self.head_dim * bits / 8 + scale_bytes)


class KvCache:
    """Keys and values of sequences that grow token by token, rounded as they come in.

    Arrays are float32, or uint16 that hold bfloat16: k, v [batch, kv_heads, tokens, head_dim]; q and the result
    [batch, heads, q_tokens, head_dim]. Every query sees all tokens: there is no mask.
    """

    def __init__(self, shape: KvShape) -> None:
        self.shape = shape
        self.lengths = np.zeros(shape.batch, np.int64)
        self._native = load()
        self._pages = PackedWeights(self._native.kv_attention_cache_bytes(shape.native(shape.kv_heads, 1)))
        self._workspaces: dict[tuple[int, int, int], NDArray[np.uint8]] = {}

    @property
    def address(self) -> int:
        """Return where the cache begins in memory; its layout is told in kernels/kv_attention/layout.h."""
        return self._pages.address

    @property
    def byte_count(self) -> int:
        """Return the bytes of the whole cache."""
        return self._pages.byte_count

    def append(self, k: Numbers, v: Numbers) -> None:
        """Round new tokens and write them behind those that every sequence has."""
        shape = self.shape
        tokens = k.shape[2] if k.ndim == 4 else 0
        wanted = (shape.batch, shape.kv_heads, tokens, shape.head_dim)
        k, v = _dense(k, wanted, "k"), _dense(v, wanted, "v")
        if k.dtype != v.dtype:
            raise InputError(f"k is {k.dtype} and v is {v.dtype}; give both in one type")
        if int(self.lengths.max()) + tokens > shape.capacity_tokens:
            raise InputError(
                f"{tokens} tokens behind {int(self.lengths.max())} do not fit in a cache of {shape.capacity_tokens};"
                " make it longer"
            )
        self._native.kv_attention_append(
            shape.native(shape.kv_heads, 1), _at(k), _at(v), _dtype(k), tokens, _at(self.lengths), self.address
        )
        self.lengths += tokens

    def attend(self, q: Numbers, scale: float | None = None, threads: int = 1, isa: int = -1) -> Numbers:
        """Return softmax(scale · q · kᵀ) · v in the type of q; the scale is head_dim**-0.5 unless given."""
        heads, q_tokens = (q.shape[1], q.shape[2]) if q.ndim == 4 else (0, 0)
        q = _dense(q, (self.shape.batch, heads, q_tokens, self.shape.head_dim), "q")
        self._check(heads, q_tokens, threads, isa)
        out = np.empty_like(q)
        workspace = self._workspace(heads, q_tokens, threads)
        status = self._native.kv_attention_run(
            isa,
            self.shape.native(heads, q_tokens),
            _at(q),
            self.address,
            _at(self.lengths),
            _at(out),
            _dtype(q),
            self.shape.head_dim**-0.5 if scale is None else scale,
            threads,
            -(-_at(workspace) // LINE_BYTES) * LINE_BYTES,
        )
        assert status == 0, status
        return out

    def _check(self, heads: int, q_tokens: int, threads: int, isa: int) -> None:
        if heads < 1 or heads % self.shape.kv_heads or q_tokens < 1:
            raise InputError(
                f"{heads} query heads, {q_tokens} tokens; heads must be a multiple of {self.shape.kv_heads}"
            )
        if int(self.lengths.min()) < 1:
            raise InputError("a sequence of the cache is empty; append at least one token first")
        if threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        if isa >= 0 and not self._native.isa_runs(isa):
            raise InputError(f'this processor does not run the variant "{self._native.isa_text(isa)}"; leave it out')

    def _workspace(self, heads: int, q_tokens: int, threads: int) -> NDArray[np.uint8]:
        key = (heads, q_tokens, threads)
        if key not in self._workspaces:
            byte_count = self._native.kv_attention_workspace_bytes(self.shape.native(heads, q_tokens), threads)
            self._workspaces[key] = np.empty(byte_count + LINE_BYTES, np.uint8)
        return self._workspaces[key]


def _dense(array: Numbers, wanted: tuple[int, ...], name: str) -> Numbers:
    if array.shape != wanted:
        raise InputError(f"{name} has the shape {array.shape}; {wanted} is needed")
    if array.dtype not in (np.float32, np.uint16):
        raise InputError(f"{name} is {array.dtype}; give float32, or uint16 that hold bfloat16")
    dense: Numbers = np.ascontiguousarray(array)  # type: ignore[assignment]
    return dense


def _at(array: NDArray[Any]) -> int:
    return array.ctypes.data


def _dtype(array: Numbers) -> int:
    return 0 if array.dtype == np.float32 else 1
