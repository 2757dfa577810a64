"""A KV cache on a GPU and attention of one new token per sequence over it."""

from dataclasses import dataclass
from typing import Any

from codesign.errors import InputError
from codesign.gpu.gemm import Workspace
from codesign.gpu.launch import Gpu, Launch
from codesign.gpu.layout import padded
from codesign.gpu.program import Program, program

HEAD_DIMS = (64, 128)
ROWS_MAX = 16
THREADS, WARPS, ROWS = 128, 4, 16
BLOCKS_PER_MULTIPROCESSOR = 2
PARTS_MAX = 256  # whose weights fit into the shared memory of the block that puts them together
KV_BITS = {"fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}


def shared_bytes(head_dim: int) -> int:
    """Return the shared memory of a block: each warp's share of each row, their weights, two totals of each row."""
    return 4 * ROWS * (WARPS * (head_dim + 2) + WARPS + 2)


@dataclass(frozen=True, slots=True)
class GpuKvShape:
    """What a cache holds: up to `capacity_tokens` tokens of `kv_heads` heads for each of `batch` sequences."""

    kv_format: str
    batch: int
    kv_heads: int
    head_dim: int
    capacity_tokens: int

    @property
    def bits(self) -> int:
        """Return the bits of a number."""
        return KV_BITS[self.kv_format]

    @property
    def step(self) -> int:
        """Return the tokens that lie together."""
        return 512 // self.bits

    @property
    def capacity(self) -> int:
        """Return the tokens for which there is room, whole steps."""
        return padded(self.capacity_tokens, self.step)

    @property
    def has_scales(self) -> bool:
        """Return whether each token's keys and values have a scale."""
        return self.kv_format in ("int8", "int4")


class GpuKvCache:
    """Keys and values of sequences that grow token by token, rounded as they come in."""

    def __init__(self, gpu: Gpu, shape: GpuKvShape, dtype: Any, device: Any) -> None:
        """Take the memory; `dtype` is that of new tokens, queries and results: float16 or bfloat16."""
        import torch

        if shape.kv_format not in KV_BITS or shape.head_dim not in HEAD_DIMS:
            raise InputError(f"{shape}: KV formats are {', '.join(KV_BITS)}, head dimensions 64 and 128.")
        if shape.bits == 16 and (shape.kv_format == "bf16") != (dtype == torch.bfloat16):
            raise InputError(f"a cache of {shape.kv_format} takes tokens of the same type, not {dtype}.")
        self.gpu, self.shape, self.dtype = gpu, shape, dtype
        heads = (shape.batch, shape.kv_heads, shape.capacity)
        words = shape.head_dim * shape.bits // 32
        self.keys, self.values = (torch.zeros((*heads, words), dtype=torch.int32, device=device) for _ in range(2))
        scales = heads if shape.has_scales else (1,)
        self.key_scales, self.value_scales = (torch.zeros(scales, dtype=torch.float16, device=device) for _ in range(2))
        self.lengths = torch.zeros(shape.batch, dtype=torch.int32, device=device)
        self._workspace = Workspace(device)
        self._longest = 0

    @property
    def program(self) -> Program:
        """Return the unit that attends over such a cache."""
        import torch

        shape = self.shape
        return program(
            "kv_attention",
            bfloat=self.dtype == torch.bfloat16,
            e4m3=shape.kv_format == "fp8",
            head_dim=shape.head_dim,
            kv_bits=shape.bits,
        )

    def append(self, k: Any, v: Any) -> None:
        """Round new tokens of every sequence, [batch, kv_heads, tokens, head_dim], and put them behind the others."""
        shape = self.shape
        count = k.shape[2] if k.dim() == 4 else 0
        for name, values in (("k", k), ("v", v)):
            wanted = (shape.batch, shape.kv_heads, count, shape.head_dim)
            if tuple(values.shape) != wanted or values.dtype != self.dtype or not values.is_contiguous():
                raise InputError(f"{name}: contiguous {self.dtype} of shape {wanted} is wanted.")
        if self._longest + count > shape.capacity:
            raise InputError(f"the cache is full: it holds {shape.capacity} tokens, {self._longest} are in it.")
        self.gpu.launch(
            Launch(self.program, "append", (shape.kv_heads, shape.batch, 1), 32, 0),
            (k, v, self.keys, self.values, self.key_scales, self.value_scales, self.lengths, shape.capacity, count),
        )
        self.lengths += count
        self._longest += count

    def parts(self) -> int:
        """Return over how many blocks a head's cache is cut: enough to fill the machine, a step for each warp."""
        blocks = self.shape.batch * self.shape.kv_heads
        wanted = -(-BLOCKS_PER_MULTIPROCESSOR * self.gpu.multiprocessors // blocks)
        return max(1, min(wanted, PARTS_MAX, self._longest // (WARPS * self.shape.step)))

    def attend(self, q: Any) -> Any:
        """Return softmax(q kᵀ / √head_dim) v of one query per sequence and head, [batch, heads, head_dim]."""
        import torch

        shape = self.shape
        batch, heads, dim = q.shape
        rows = heads // shape.kv_heads
        if (batch, rows * shape.kv_heads, dim) != (shape.batch, heads, shape.head_dim) or rows > ROWS_MAX:
            raise InputError(f"queries of shape {tuple(q.shape)} do not fit to {shape}, up to 16 heads of q each.")
        if not self._longest:
            raise InputError("the cache is empty; append a token first.")
        out = torch.empty_like(q)
        parts = self.parts()
        partial, arrived = self._workspace.room(
            batch * heads * parts * (dim + 2) if parts > 1 else 1, batch * shape.kv_heads
        )
        self.gpu.launch(
            Launch(self.program, "attend", (parts, shape.kv_heads, batch), THREADS, shared_bytes(dim)),
            (q, self.keys, self.values, self.key_scales, self.value_scales, self.lengths, out, partial, arrived, rows,
             shape.capacity, dim**-0.5),
        )  # fmt: skip
        return out
