"""What a kernel of any library looks like to the profiler: the case it is asked to run and what it prepares for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

CacheState = Literal["rotating", "cold", "hot"]
Phase = Literal["decode", "prefill"]
Device = Literal["cpu", "cuda"]
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


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """Sizes of a transformer block with softmax attention and one MLP, which is gated or not."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    gated: bool = True


@dataclass(frozen=True, slots=True)
class BlockCase:
    """One step through `blocks` transformer blocks of a model.

    Decode adds one token to each of `batch` sequences, the last of `context_tokens`; prefill reads them all at once.
    """

    model: str
    sizes: BlockSizes
    scheme: str
    kv_format: str
    blocks: int
    batch: int
    context_tokens: int
    phase: Phase
    threads: int = 1
    seed: int = 0

    @property
    def cache(self) -> CacheState:
        """Return where the weights lie when a step begins: each is read once per step, the others in between."""
        return "cold"

    @property
    def query_tokens(self) -> int:
        """Return the new tokens of each sequence."""
        return 1 if self.phase == "decode" else self.context_tokens

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Return (n, k) of the multiplications of one block, by their fused group."""
        one = self.sizes
        width = one.heads * one.head_dim
        return {
            "qkv": (width + 2 * one.kv_heads * one.head_dim, one.hidden),
            "o": (one.hidden, width),
            "gate_up": ((2 if one.gated else 1) * one.intermediate, one.hidden),
            "down": (one.hidden, one.intermediate),
        }

    @property
    def weight_count(self) -> int:
        """Return the weights of all blocks."""
        return self.blocks * sum(n * k for n, k in self.shapes.values())

    @property
    def kv_element_count(self) -> int:
        """Return the keys and values that all blocks hold."""
        return 2 * self.blocks * self.batch * self.context_tokens * self.sizes.kv_heads * self.sizes.head_dim

    @property
    def flop(self) -> float:
        """Return the operations of multiplications and attention, two per multiply-add, without masking."""
        rows = self.batch * self.query_tokens
        attended = 2.0 * self.blocks * rows * self.context_tokens * self.sizes.heads * self.sizes.head_dim
        return 2.0 * rows * self.weight_count + 2.0 * attended


class GpuClock(Protocol):
    """What a GPU offers for timing."""

    def recorded(self, calls: Callable[[], Any]) -> Callable[[], Any]:
        """Return what repeats the calls with one start."""

    def elapsed_s(self, calls: Callable[[], Any], count: int) -> float:
        """Return the seconds between two events around `count` repetitions, by the GPU's clock."""

    def flush(self, size_bytes: int) -> Callable[[], Any]:
        """Return what begins to write so many bytes, to empty its last-level cache; what comes next waits for it."""

    def give_back(self) -> None:
        """Give memory that is not used any more back to the driver, for other processes."""


Case = GemmCase | AttentionCase
RunnableCase = Case | BlockCase


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel ready to be timed: weights packed, inputs in place.

    `run(copy)` makes one call that reads copy number `copy` of the weights (or of the KV cache) and returns the
    kernel's own output object, with nothing left running in the background; `copies` of them exist. `output` turns
    that object into float32 [m, n] (attention: [batch, heads, q_tokens, head_dim]). `reference()` returns the exact
    result in float64 of what the kernel was given: dequantized weights, and activations as its scheme rounds them.
    Both are of copy 0; on a CPU copy c of a matrix holds the same rows moved down by c, so that its output is rolled by
    c, on a GPU all copies are equal and lie at places of their own.
    `read_bytes` are the bytes that one call must read at least (weights with scales, or KV with scales).
    `exact()` is the reference without the scheme's rounding of activations, perhaps of the first columns only: the
    distance to it tells in which precision the kernel really multiplied. None where the two are the same.
    `gpu` times the calls where they run on a GPU; `run` then only starts them.
    """

    run: Callable[[int], Any]
    copies: int
    output: Callable[[Any], FloatArray]
    reference: Callable[[], NDArray[np.float64]]
    read_bytes: float
    math_dtype: str
    exact: Callable[[], NDArray[np.float64]] | None = None
    gpu: GpuClock | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a library for one scheme (or KV format).

    `refuses(case)` returns why it cannot run a case here, None if it can; it must not load the library's data.
    `prepare(case, copies)` packs `copies` equal-looking weights made from the case's seed, in memory of their own.
    `note` says what a reader of its figures must know, such as that it is reference code. `device` is where it runs.
    `tunes`: its first call tries variants by their time, so that nothing may run beside it.
    """

    library: str
    name: str
    scheme: str
    refuses: Callable[[Any], str | None]
    prepare: Callable[[Any, int], Prepared]
    note: str = ""
    device: Device = "cpu"
    tunes: bool = False


@dataclass(frozen=True, slots=True)
class LibraryState:
    """Whether a library is here: its version, or the reason why it is not and what would bring it."""

    name: str
    version: str | None
    reason: str | None
    device: Device = "cpu"


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
