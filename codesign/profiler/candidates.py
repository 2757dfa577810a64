"""What to measure: cases from shapes and settings, the kernels that run them, and what each needs in memory."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from codesign.errors import InputError
from codesign.model.groups import fused_groups
from codesign.model.layers import Attention, Model
from codesign.profiler.discover import Catalog
from codesign.profiler.kernel import (
    AttentionCase,
    BlockCase,
    BlockSizes,
    CacheState,
    Device,
    GemmCase,
    Kernel,
    Phase,
    RunnableCase,
)
from codesign.profiler.processors import pinned_processors
from codesign.profiler.records import record_key
from codesign.profiler.repeated import unique_attention, unique_gemm
from codesign.profiler.run_folder import Skipped
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KV_FORMATS, parse_kv
from codesign.schemes.storage import weight_bytes
from codesign.units import BITS_PER_BYTE, MEBI

# Weights are read in turn from so many caches that a copy has left when it is due. Three leave a tenth of the reads in
# a cache that does not evict the oldest lines first: on Zen 4 kernels then read 39 GB/s where memory gave 37. It shows
# where reading takes the time, at few rows.
ROTATION_CACHES, FEW_ROWS_CACHES = 3, 8
FEW_ROWS = 8
FLUSH_CACHES = 3  # written before a call of a cold case
COPIES_MAX = 1024
CHILD_BYTES = 400 * MEBI  # a process with torch loaded
PREPARE_BYTES_PER_WEIGHT = 16  # the weights in fp32 and fp64 and what packing holds besides, while a case is prepared
SIZE_MAX = 2**20


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one multiplication without its rows: n output and k input features."""

    n: int
    k: int


@dataclass(frozen=True, slots=True)
class AttentionSizes:
    """Heads of one attention, how many tokens are cached, and how many of them are new: one in decode."""

    heads: int
    kv_heads: int
    head_dim: int
    kv_tokens: int
    q_tokens: int = 1


@dataclass(frozen=True, slots=True)
class BlockQuestion:
    """Steps through transformer blocks instead of single kernels: decode at contexts, prefill of prompts."""

    model: str
    sizes: BlockSizes
    count: int
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    kv_formats: tuple[str, ...]

    @property
    def steps(self) -> Iterator[tuple[Phase, int, str]]:
        """Yield phase, tokens and KV format of every step."""
        for kv_format in self.kv_formats:
            yield from (("decode", tokens, kv_format) for tokens in self.contexts)
            yield from (("prefill", tokens, kv_format) for tokens in self.prompts)


@dataclass(frozen=True, slots=True)
class Question:
    """What the user asks to be measured; `schemes` is empty for all."""

    shapes: tuple[Shape, ...]
    attentions: tuple[AttentionSizes, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    libraries: tuple[str, ...]
    schemes: tuple[str, ...]
    cache: CacheState
    seed: int
    blocks: BlockQuestion | None = None
    device: Device = "cpu"


@dataclass(frozen=True, slots=True)
class Entry:
    """One case for one kernel, and its key in records.

    `held_bytes` is what the copies of the weights take, and what empties the caches; `peak_bytes` what preparing them
    takes besides; `notes` go into its record.
    """

    kernel: Kernel
    version: str
    case: RunnableCase
    key: str
    copies: int
    held_bytes: float
    peak_bytes: float
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def candidate(self) -> str:
        """Return the name of the kernel with its threads: one process runs it."""
        return f"{self.kernel.library}/{self.kernel.name} {self.kernel.scheme} x{self.case.threads}"


@dataclass(frozen=True)
class RunPlan:
    """Blocks of entries that answer the same multiplication and are measured in turns; what is left out and why."""

    blocks: tuple[tuple[Entry, ...], ...]
    skipped: tuple[Skipped, ...]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Return all entries in order."""
        return tuple(entry for block in self.blocks for entry in block)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Return the names of the candidates in order."""
        return tuple(dict.fromkeys(entry.candidate for entry in self.entries))


def model_shapes(model: Model) -> tuple[Shape, ...]:
    """Return the distinct (n, k) that a model multiplies: fused groups, and each matrix of its routed experts."""
    shapes: list[Shape] = []
    for group in fused_groups(model):
        if group.experts is None:
            shapes.append(Shape(group.n, group.k))
        else:
            shapes.extend(Shape(n, k) for n, k in group.experts.matrices)
    return tuple(dict.fromkeys(shapes))


def model_attentions(
    model: Model, kv_tokens: tuple[int, ...], prompts: tuple[int, ...] = ()
) -> tuple[AttentionSizes, ...]:
    """Return a model's distinct softmax attentions of decode at so many cached tokens, and of so many prompt tokens.

    Latent ones are left out.
    """
    found = (block.attention for block in model.blocks)
    kinds = dict.fromkeys((one.heads, one.kv_heads, one.head_dim) for one in found if isinstance(one, Attention))
    lengths = [(tokens, 1) for tokens in kv_tokens] + [(tokens, tokens) for tokens in prompts]
    return tuple(AttentionSizes(*kind, *length) for kind in kinds for length in lengths)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Return the shapes of a list such as `4096x4096,11008x4096`, each N x K; InputError for other words."""
    shapes = []
    for word in filter(None, (part.strip().lower() for part in text.split(","))):
        sizes = word.split("x")
        if len(sizes) != 2 or not all(
            one.isascii() and one.isdigit() and 1 <= int(one[:8]) <= SIZE_MAX for one in sizes
        ):
            raise InputError(f'"{word[:40]}" is not a shape; write NxK, such as 4096x11008, each up to {SIZE_MAX:,}.')
        shapes.append(Shape(int(sizes[0]), int(sizes[1])))
    return tuple(dict.fromkeys(shapes))


def scheme_names(text: str) -> tuple[str, ...]:
    """Return the canonical names of a list of schemes, empty for all."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if [word.lower() for word in words] == ["all"]:
        return ()
    return tuple(dict.fromkeys(parse_scheme(word).name for word in words))


def make_plan(question: Question, catalog: Catalog, critical: Mapping[str, str], cache_bytes: float) -> RunPlan:
    """Return the entries that can be measured and what is skipped; equal questions give equal plans."""
    blocks: list[tuple[Entry, ...]] = []
    refused: dict[tuple[str, str], int] = {}
    asked = [one for one in catalog.states if one.name in question.libraries and one.device == question.device]
    missing = [state for state in asked if state.version is None]
    away = {state.name for state in missing}
    kernels = [kernel for kernel in catalog.kernels if _wanted(kernel, question) and kernel.library not in away]
    for blank in _cases(question):
        entries = []
        for kernel in kernels:
            case = _of_scheme(blank, kernel)
            reason = None if case is None else kernel.refuses(case)
            if case is not None and reason is None:
                entries.append(_entry(kernel, catalog.version(kernel), case, critical, cache_bytes))
            elif reason is not None:
                named = (f"{kernel.library}/{kernel.name} {kernel.scheme}", reason)
                refused[named] = refused.get(named, 0) + 1
        if entries:
            blocks.append(tuple(entries))
    refusals = [Skipped(name, f"{reason} ({_cases_text(count)})") for (name, reason), count in refused.items()]
    absent = [Skipped(state.name, state.reason or "it says no reason") for state in missing]
    return RunPlan(tuple(blocks), (*absent, *refusals))


def _cases_text(count: int) -> str:
    return "1 case" if count == 1 else f"{count} cases"


def is_attention(kernel: Kernel) -> bool:
    """Return whether a kernel attends rather than multiplies: its scheme then is the name of a KV format."""
    return kernel.scheme in KV_FORMATS


def _wanted(kernel: Kernel, question: Question) -> bool:
    named = is_attention(kernel) or not question.schemes or parse_scheme(kernel.scheme).name in question.schemes
    return named and kernel.library in question.libraries and kernel.device == question.device


def _cases(question: Question) -> Iterator[RunnableCase]:
    """Yield every case without its scheme; one thread count after the other, so that processes can be kept."""
    for threads in question.threads:
        if question.blocks is not None:
            yield from _block_cases(question, question.blocks, threads)
        for shape in question.shapes:
            for m in question.batches:
                yield GemmCase("", m, shape.n, shape.k, threads, question.cache, question.seed)
        for one in question.attentions:
            for batch in question.batches:
                sizes = (batch, one.heads, one.kv_heads, one.head_dim, one.q_tokens, one.kv_tokens)
                yield AttentionCase("", *sizes, threads, question.cache, question.seed)


def _block_cases(question: Question, blocks: BlockQuestion, threads: int) -> Iterator[BlockCase]:
    for phase, tokens, kv_format in blocks.steps:
        for batch in question.batches:
            of_model = (blocks.model, blocks.sizes, "", kv_format, blocks.count)
            yield BlockCase(*of_model, batch, tokens, phase, threads, question.seed)


def _of_scheme(blank: RunnableCase, kernel: Kernel) -> RunnableCase | None:
    """Return the case in the kernel's scheme, None where the kernel does something else."""
    if not isinstance(blank, AttentionCase):
        return None if is_attention(kernel) else replace(blank, scheme=kernel.scheme)
    return replace(blank, kv_format=kernel.scheme) if is_attention(kernel) else None


def _entry(kernel: Kernel, version: str, case: RunnableCase, critical: Mapping[str, str], cache_bytes: float) -> Entry:
    copies = copy_count(case, cache_bytes)
    key = record_key(kernel.library, version, kernel.name, case, critical)
    held_bytes = copies * stored_bytes(case) + flush_bytes(case, cache_bytes)
    peak_bytes = float(PREPARE_BYTES_PER_WEIGHT * weight_count(unique_case(case, kernel.device)))
    return Entry(kernel, version, case, key, copies, held_bytes, peak_bytes)


def unique_case(case: RunnableCase, device: Device) -> RunnableCase:
    """Return what of a case is made and packed on the CPU."""
    if isinstance(case, BlockCase):
        return case
    return unique_gemm(case, device) if isinstance(case, GemmCase) else unique_attention(case, device)


def weight_count(case: RunnableCase) -> int:
    """Return the values that one copy holds: weights, or keys and values."""
    if isinstance(case, GemmCase):
        return case.n * case.k
    if isinstance(case, BlockCase):
        return case.weight_count + case.kv_element_count
    return 2 * case.batch * case.kv_tokens * case.kv_heads * case.head_dim


def stored_bytes(case: RunnableCase) -> float:
    """Return the bytes of one copy as its format stores it."""
    if isinstance(case, GemmCase):
        return float(weight_bytes(parse_scheme(case.scheme), case.n, case.k))
    if isinstance(case, BlockCase):
        scheme, kv_bytes = parse_scheme(case.scheme), case.kv_element_count * parse_kv(case.kv_format).bits
        return (
            case.blocks * sum(weight_bytes(scheme, *shape) for shape in case.shapes.values()) + kv_bytes / BITS_PER_BYTE
        )
    return weight_count(case) * parse_kv(case.kv_format).bits / BITS_PER_BYTE


def copy_count(case: RunnableCase, cache_bytes: float) -> int:
    """Return how many copies are read in turn so that each is out of the cache again when it is due."""
    if case.cache != "rotating":
        return 1
    reads = not isinstance(case, GemmCase) or case.m <= FEW_ROWS
    caches = FEW_ROWS_CACHES if reads else ROTATION_CACHES
    return min(COPIES_MAX, int(caches * cache_bytes / stored_bytes(case)) + 1)


def flush_bytes(case: RunnableCase, cache_bytes: float) -> int:
    """Return how much is written before each call of a cold case; whole steps empty the caches themselves."""
    flushed = case.cache == "cold" and not isinstance(case, BlockCase)
    return int(FLUSH_CACHES * cache_bytes) if flushed else 0


def processors_of(entry: Entry) -> tuple[int, ...]:
    """Return the processors of an entry's process: those of its threads; all, which is none, for kernels of a GPU."""
    return pinned_processors(entry.case.threads) if entry.kernel.device == "cpu" else ()


def shuffled(entries: tuple[Entry, ...], seed: int, salt: str) -> tuple[Entry, ...]:
    """Return the entries in an order that the seed decides, another one for every salt."""
    return tuple(random.Random(f"{seed} {salt}").sample(entries, len(entries)))


def memory_groups(entries: tuple[Entry, ...], limit_bytes: float) -> tuple[tuple[Entry, ...], ...]:
    """Return the entries in groups that fit into memory together; one that is too large alone is a group of its own.

    The processes of all entries live on, whichever group is measured.
    """
    groups: list[list[Entry]] = []
    for entry in entries:
        if not groups or need_bytes((*groups[-1], entry), len(entries)) > limit_bytes:
            groups.append([])
        groups[-1].append(entry)
    return tuple(map(tuple, groups))


def need_bytes(group: tuple[Entry, ...], process_count: int) -> float:
    """Return the memory of a group: one case is prepared at a time, then all are held."""
    if not group:
        return 0.0
    held_bytes = sum(entry.held_bytes for entry in group)
    return process_count * CHILD_BYTES + held_bytes + max(entry.peak_bytes for entry in group)
