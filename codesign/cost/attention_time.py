"""Seconds of attention from a kernel sheet's constants: tasks on units, KV bytes on the memory, one launch.

Decode: one task is one KV head of one sequence with its group of query heads; a task's tokens may be split over units.
Prefill: one task is one tile of query rows of one head. Every term is monotone: more work is never faster, more rate or
bandwidth never slower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats, smooth_maximum
from codesign.cost.sheet import SheetTime, constants_problem
from codesign.cost.traffic import ACTIVATION_BYTES, attended_pairs
from codesign.hardware.hardware import Hardware

DECODE_CONSTANTS = (
    "fixed_s", "bandwidth_fraction", "ramp_s", "load_bytes_per_cycle", "compute_fraction", "task_overhead_s",
    "token_block", "split_s", "split_each_s", "overlap_exponent",
)  # fmt: skip
# A second kernel, for groups of one query head and for groups that the first one cannot pack: all of it or none.
SINGLE_PREFIX = "single_"
SINGLE_CONSTANTS = tuple(SINGLE_PREFIX + name for name in DECODE_CONSTANTS)
DECODE_OPTIONS = ("packed_group_max", "regroup_s")
PREFILL_CONSTANTS = (
    "fixed_s", "bandwidth_fraction", "compute_fraction", "exponentials_per_cycle", "task_overhead_s", "wave_fraction",
    "token_s", "overlap_exponent",
)  # fmt: skip
EXPONENT_MIN, EXPONENT_MAX = 0.7, 100.0

SPLITS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256], dtype=np.float64)[:, None]
PARTIAL_SUM_BYTES = 8.0  # written and read in 32 bits
DECODE_WAVE_FRACTION = 0.6  # share of the last, partly filled wave of tasks that counts as a whole one
ROWS_MIN, ROWS_MAX = 16.0, 64.0  # rows of a tensor instruction; query heads that one decode task takes
TILE_MAX = 128.0
KV_BLOCK_TOKENS = 64.0


class Packing(IntEnum):
    """When the query heads of one KV head share a prefill tile (constant `packing`, absent = NEVER)."""

    NEVER = 0
    SINGLE_QUERY = 1
    ALWAYS = 2


def attention_key(kv_name: str, head_dim: int) -> str:
    """Return the name under which kernel sheets hold attention: kernels are built per KV format and head dimension."""
    return f"{kv_name}-d{head_dim}"


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One attention kernel, as numbers or arrays; `kv_tokens` counts what the last query sees, itself included."""

    batch: FloatArray
    query_tokens: FloatArray
    kv_tokens: FloatArray
    heads: FloatArray
    kv_heads: FloatArray
    head_dim: FloatArray
    window_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """Sizes as arrays of one length, with what does not depend on constants. `token_bytes`: K and V of one KV head."""

    batch: FloatArray
    query_tokens: FloatArray
    kv_tokens: FloatArray
    seen_tokens: FloatArray
    heads: FloatArray
    kv_heads: FloatArray
    head_dim: FloatArray
    token_bytes: FloatArray
    tensor_flop_per_s: float
    vector_flop_per_s: float
    unit_count: float
    clock_hz: float
    bytes_per_s: float

    @property
    def group(self) -> FloatArray:
        """Return the query heads per KV head."""
        return self.heads / self.kv_heads


def attention_work(
    hardware: Hardware, math_dtype: str, shape: AttentionShape, token_bytes: FloatArray
) -> AttentionWork:
    """Return the work of the kernels; `token_bytes` are those of keys and values of one token in one KV head."""
    sizes = (shape.batch, shape.query_tokens, shape.kv_tokens, shape.heads, shape.kv_heads, shape.head_dim, token_bytes)
    batch, query, kv, heads, kv_heads, head_dim, stored = (
        column.ravel() for column in np.broadcast_arrays(*(as_floats(size) for size in sizes))
    )
    kept = kv if shape.window_tokens is None else np.minimum(kv, shape.window_tokens + query)
    return AttentionWork(
        batch=batch,
        query_tokens=query,
        kv_tokens=kept,
        seen_tokens=attended_pairs(query, kv, shape.window_tokens) / query,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        token_bytes=stored,
        tensor_flop_per_s=hardware.peak_flop_per_s[math_dtype],
        vector_flop_per_s=hardware.peak_flop_per_s.get("fp32", hardware.peak_flop_per_s[math_dtype]),
        unit_count=float(hardware.unit_count),
        clock_hz=hardware.boost_clock_hz,
        bytes_per_s=hardware.memory.bandwidth_bytes_per_s,
    )


def kv_bytes(work: AttentionWork) -> FloatArray:
    """Return the bytes of all keys and values that a kernel reads. Source: definition."""
    return work.batch * work.kv_tokens * work.kv_heads * work.token_bytes


def _query_bytes(work: AttentionWork) -> FloatArray:
    """Return the bytes of queries read and results written. Source: definition."""
    return 2.0 * ACTIVATION_BYTES * work.batch * work.query_tokens * work.heads * work.head_dim


def decode_seconds(constants: Mapping[str, float], work: AttentionWork) -> SheetTime:
    """Return the time of one query per sequence over its cached keys and values."""
    group = work.group
    rows = np.ceil(np.minimum(group, ROWS_MAX) / ROWS_MIN) * ROWS_MIN
    tasks = work.batch * work.kv_heads * np.ceil(group / ROWS_MAX)
    time = _tasks_time(constants, "", work, tasks, rows, work.tensor_flop_per_s)
    if SINGLE_CONSTANTS[0] in constants:
        alone = takes_single_kernel(constants, group)
        one = np.ones_like(group)
        single = _tasks_time(constants, SINGLE_PREFIX, work, work.batch * work.heads, one, work.vector_flop_per_s)
        time = SheetTime(*(np.where(alone, b, a) for a, b in zip(_parts(time), _parts(single), strict=True)))
    regroup_s = constants.get("regroup_s", 0.0) * ((group > 1) & (work.batch > 1) & (work.kv_heads > 1))
    return SheetTime(time.compute_s, time.memory_s, time.fixed_s + regroup_s, time.predicted_s + regroup_s)


def takes_single_kernel(constants: Mapping[str, float], group: FloatArray) -> npt.NDArray[np.bool_]:
    """Return where query heads are not packed: groups of one, and groups above `packed_group_max`."""
    return (group <= 1.0) | (group > constants.get("packed_group_max", np.inf))


def _parts(time: SheetTime) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    return time.compute_s, time.memory_s, time.fixed_s, time.predicted_s


def _tasks_time(
    constants: Mapping[str, float],
    prefix: str,
    work: AttentionWork,
    tasks: FloatArray,
    rows: FloatArray,
    flop_per_s: float,
) -> SheetTime:
    """Return the time of one decode kernel: tasks with the best split of their tokens, and bytes with a ramp."""
    c = {name: constants[prefix + name] for name in DECODE_CONSTANTS}
    bytes_per_s = work.bytes_per_s * c["bandwidth_fraction"]
    load_cycles = work.token_bytes / c["load_bytes_per_cycle"]
    unit_flop_per_cycle = flop_per_s * c["compute_fraction"] / (work.unit_count * work.clock_hz)
    token_s = np.hypot(load_cycles, 4.0 * rows * work.head_dim / unit_flop_per_cycle) / work.clock_hz
    filled = tasks * SPLITS / work.unit_count
    whole = DECODE_WAVE_FRACTION
    waves = np.maximum(1.0, (1.0 - whole) * filled + whole * np.ceil(filled))
    tokens = np.maximum(work.kv_tokens / SPLITS, c["token_block"])
    merge_s = SPLITS * (c["split_each_s"] + tasks * rows * work.head_dim * PARTIAL_SUM_BYTES / bytes_per_s)
    seconds = waves * (tokens * token_s + c["task_overhead_s"]) + np.where(SPLITS > 1, c["split_s"] + merge_s, 0.0)
    tasks_s = seconds.min(axis=0)
    stream_s = (kv_bytes(work) + _query_bytes(work)) / bytes_per_s
    memory_s = stream_s + c["ramp_s"] * stream_s / (stream_s + c["ramp_s"])
    fixed_s = np.full_like(memory_s, c["fixed_s"])
    busy_s = smooth_maximum(tasks_s, memory_s, c["overlap_exponent"])
    return SheetTime(tasks_s, memory_s, fixed_s, fixed_s + busy_s)


def prefill_seconds(constants: Mapping[str, float], work: AttentionWork) -> SheetTime:
    """Return the time of causal attention of many queries per sequence; new keys and values are written too."""
    c = constants
    packing = Packing(int(c.get("packing", Packing.NEVER)))
    tasks_s = _tiles_s(c, work, np.ones_like(work.group))
    if packing != Packing.NEVER:
        packs = (packing == Packing.ALWAYS) | (work.query_tokens <= 1)
        tasks_s = np.where(packs, np.minimum(tasks_s, _tiles_s(c, work, work.group)), tasks_s)
    memory_s = (kv_bytes(work) + _query_bytes(work)) / (work.bytes_per_s * c["bandwidth_fraction"])
    fixed_s = np.full_like(memory_s, c["fixed_s"])
    busy_s = smooth_maximum(tasks_s, memory_s, c["overlap_exponent"]) + c["token_s"] * work.batch * work.query_tokens
    return SheetTime(tasks_s, memory_s, fixed_s, fixed_s + busy_s)


def _tiles_s(c: Mapping[str, float], work: AttentionWork, packed_heads: FloatArray) -> FloatArray:
    """Return the seconds until all tiles of queries are done, `packed_heads` query heads sharing a tile."""
    rows = work.query_tokens * packed_heads
    tile = np.clip(2.0 ** np.ceil(np.log2(rows)), ROWS_MIN, TILE_MAX)
    tasks = work.batch * work.heads / packed_heads * np.ceil(rows / tile)
    unit_flop_per_cycle = work.tensor_flop_per_s * c["compute_fraction"] / (work.unit_count * work.clock_hz)
    token_cycles = tile * (4.0 * work.head_dim / unit_flop_per_cycle + 1.0 / c["exponentials_per_cycle"])
    token_s = token_cycles / work.clock_hz
    filled = tasks / work.unit_count
    waves = np.maximum(1.0, (1.0 - c["wave_fraction"]) * filled + c["wave_fraction"] * np.ceil(filled))
    average = np.maximum(work.seen_tokens + tile / packed_heads / 2, KV_BLOCK_TOKENS)
    longest = np.maximum(work.kv_tokens, KV_BLOCK_TOKENS)
    return as_floats(np.maximum(waves * average, longest) * token_s + waves * c["task_overhead_s"])


def decode_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    optional = (SINGLE_CONSTANTS, *((name,) for name in DECODE_OPTIONS))
    exponents = ("overlap_exponent", SINGLE_PREFIX + "overlap_exponent")
    return constants_problem(constants, DECODE_CONSTANTS, optional) or _exponent_problem(constants, exponents)


def prefill_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    if constants.get("packing", Packing.NEVER) not in tuple(Packing):
        return f"packing is {constants['packing']:g}; allowed are 0 (never), 1 (single queries) and 2 (always)."
    if constants.get("wave_fraction", 1.0) > 1.0:
        return f"wave_fraction is {constants['wave_fraction']:g}; at most 1 is allowed."
    others = {name: value for name, value in constants.items() if name != "packing"}
    return constants_problem(others, PREFILL_CONSTANTS) or _exponent_problem(others, ("overlap_exponent",))


def _exponent_problem(constants: Mapping[str, float], names: tuple[str, ...]) -> str | None:
    if all(EXPONENT_MIN <= constants.get(name, 1.0) <= EXPONENT_MAX for name in names):
        return None
    return f"an overlap exponent must be from {EXPONENT_MIN:g} to {EXPONENT_MAX:g}."
