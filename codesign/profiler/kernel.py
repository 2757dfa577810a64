"""What a kernel of any library looks like to the profiler: the case it is asked to run and what it prepares for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CacheState = Literal["rotating", "cold", "hot"]
FloatArray = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GemmCase:
    """One multiplication out[m, n] = x[m, k] · w[n, k]ᵀ; `cache` says where the weights lie when a call begins."""

    scheme: str
    m: int
    n: int
    k: int
    threads: int = 1
    cache: CacheState = "rotating"
    seed: int = 0

    @property
    def flop(self) -> float:
        """Return the operations, two per multiply-add."""
        return 2.0 * self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """Attention of q_tokens new tokens per sequence over kv_tokens cached ones; decode has q_tokens == 1."""

    kv_format: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    q_tokens: int
    kv_tokens: int
    threads: int = 1
    cache: CacheState = "rotating"
    seed: int = 0

    @property
    def flop(self) -> float:
        """Return the operations of scores and of weighted values, two per multiply-add, without masking."""
        return 4.0 * self.batch * self.heads * self.q_tokens * self.kv_tokens * self.head_dim


Case = GemmCase | AttentionCase


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel ready to be timed: weights packed, inputs in place.

    `run(copy)` makes one call that reads copy number `copy` of the weights (or of the KV cache) and returns the
    kernel's own output object, with nothing left running in the background; `copies` of them exist. `output` turns
    that object into float32 [m, n] (attention: [batch, heads, q_tokens, head_dim]). `reference()` returns the exact
    result in float64 of what the kernel was given: dequantized weights, and activations as its scheme rounds them.
    `read_bytes` are the bytes that one call must read at least (weights with scales, or KV with scales).
    """

    run: Callable[[int], Any]
    copies: int
    output: Callable[[Any], FloatArray]
    reference: Callable[[], NDArray[np.float64]]
    read_bytes: float
    math_dtype: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a library for one scheme (or KV format).

    `refuses(case)` returns why it cannot run a case here, None if it can; it must not load the library's data.
    `prepare(case, copies)` packs `copies` equal-looking, distinct weights made from the case's seed.
    """

    library: str
    name: str
    scheme: str
    refuses: Callable[[Case], str | None]
    prepare: Callable[[Any, int], Prepared]


@dataclass(frozen=True, slots=True)
class LibraryState:
    """Whether a library is here: its version, or the reason why it is not and what would bring it."""

    name: str
    version: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class GemmInputs:
    """Seeded normal activations [m, k] and weights [n, k], as float32; zeros would draw less power."""

    x: NDArray[np.float32]
    w: NDArray[np.float32]


def gemm_inputs(case: GemmCase) -> GemmInputs:
    """Return the inputs of a case, the same for every kernel that runs it."""
    random = np.random.default_rng((case.seed, case.m, case.n, case.k))
    x = random.standard_normal((case.m, case.k), dtype=np.float32)
    w = random.standard_normal((case.n, case.k), dtype=np.float32)
    return GemmInputs(x, w * np.float32(case.k**-0.5))
