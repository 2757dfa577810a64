"""Seconds of the routed experts of one block from a kernel sheet's constants: two grouped multiplications and passes.

Up (with gate) and down are one kernel each: every expert hit brings its own tiles, and all tiles share the units, in
whole waves. Between and after them rows are activated, moved and summed. Without skew every term is monotone: more
tokens, choices or wider matrices are never faster, more rate or bandwidth never slower. Skewed loads are drawn, so that
single cases deviate.

What the measured tables show: `tokens` are those of all devices together; tensor parallelism divides `intermediate`,
expert parallelism the experts, and the busiest device is timed. Some kernels also walk over the rows of experts that
other devices hold (`remote_row_fraction` 1), others skip them (near 0).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats, smooth_maximum
from codesign.cost.expert_routing import TILE_ROWS, busiest_device
from codesign.cost.gemm_time import gemm_math
from codesign.cost.sheet import SheetTime, constants_problem
from codesign.cost.traffic import ACTIVATION_BYTES, quantize_activation_bytes
from codesign.hardware.hardware import Hardware
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes

REQUIRED_CONSTANTS = (
    "fixed_s", "expert_s", "hit_expert_s", "bandwidth_fraction", "compute_fraction", "load_bytes_per_cycle",
    "tile_overhead_s", "overlap_exponent", "pass_bandwidth_fraction", "remote_row_fraction",
)  # fmt: skip
WEIGHT_ONLY_CONSTANTS = ("dequantized_weights_per_cycle",)

TILE_COLUMNS = 64.0
CHUNK_ROWS = 4096
Index = npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice


@dataclass(frozen=True, slots=True)
class MoeShape:
    """Routed experts of one block, as numbers or arrays; `skew` as in `expert_routing`, 0 is perfectly even.

    `tokens` are those of all devices, `intermediate` is that of one device; the `expert_count` experts are divided over
    `expert_parallel` devices. `matrix_count` is 3 with a gate, 2 without.
    """

    tokens: FloatArray
    hidden: FloatArray
    intermediate: FloatArray
    expert_count: FloatArray
    top_k: FloatArray
    skew: FloatArray
    matrix_count: FloatArray
    expert_parallel: FloatArray

    def columns(self) -> list[FloatArray]:
        """Return the fields in order."""
        return [getattr(self, field.name) for field in fields(self)]

    def take(self, rows: Index) -> "MoeShape":
        """Return the rows chosen of one-dimensional fields."""
        return MoeShape(*(column[rows] for column in self.columns()))


@dataclass(frozen=True, slots=True)
class GroupedWork:
    """One grouped multiplication, without constants: [tile height, row] waves over the units, [row] depth and bytes."""

    tile_waves: FloatArray
    k: FloatArray
    bytes: FloatArray


@dataclass(frozen=True, slots=True)
class MoeWork:
    """What does not depend on constants: the multiplications, bytes of passes, and the machine's rates."""

    multiplications: tuple[GroupedWork, GroupedWork]
    tile_flop_per_k: FloatArray
    tile_bytes_per_k: FloatArray
    experts: FloatArray
    hit: FloatArray
    pass_bytes: FloatArray
    remote_bytes: FloatArray
    flop_per_s_per_unit: float
    clock_hz: float
    bytes_per_s: float


def moe_seconds(constants: Mapping[str, float], hardware: Hardware, scheme: Scheme, shape: MoeShape) -> SheetTime:
    """Return the time of the routed experts on one device; the fields of `shape` broadcast against each other."""
    columns = np.broadcast_arrays(*(as_floats(column) for column in shape.columns()))
    flat = MoeShape(*(column.ravel() for column in columns))
    starts = range(0, max(flat.tokens.size, 1), CHUNK_ROWS)
    chunks = (flat.take(slice(start, start + CHUNK_ROWS)) for start in starts)
    times = [work_seconds(constants, moe_work(hardware, scheme, chunk)) for chunk in chunks]
    parts = (np.concatenate([getattr(time, field.name) for time in times]) for field in fields(SheetTime))
    return SheetTime(*(part.reshape(columns[0].shape) for part in parts))


def moe_work(hardware: Hardware, scheme: Scheme, shape: MoeShape) -> MoeWork:
    """Return tiles, bytes and rates of the experts; the fields are one-dimensional and of equal length."""
    math_dtype, quantizes = gemm_math(scheme, hardware)
    a_bits = scheme.activations.bits if quantizes else 16.0
    routing = busiest_device(shape.tokens, shape.expert_count, shape.top_k, shape.skew, shape.expert_parallel)
    heights = as_floats(TILE_ROWS).reshape(-1, 1)

    def grouped(n: FloatArray, k: FloatArray) -> GroupedWork:
        stored = routing.hit * weight_bytes(scheme, n.astype(np.int64), k.astype(np.int64))
        moved = routing.rows * (k * a_bits / 8 + n * ACTIVATION_BYTES)
        waves = np.ceil(routing.tiles * np.ceil(n / TILE_COLUMNS) / hardware.unit_count)
        return GroupedWork(waves, k, as_floats(stored + moved))

    up_columns = (shape.matrix_count - 1.0) * shape.intermediate
    quantize_bytes = quantize_activation_bytes(shape.tokens, shape.hidden, a_bits)
    quantize_bytes = quantize_bytes + quantize_activation_bytes(routing.rows, shape.intermediate, a_bits)
    remote_rows = np.maximum(shape.tokens * shape.top_k - routing.rows, 0.0)
    row_values = up_columns + shape.intermediate + shape.hidden
    return MoeWork(
        multiplications=(grouped(up_columns, shape.hidden), grouped(shape.hidden, shape.intermediate)),
        tile_flop_per_k=2.0 * heights * TILE_COLUMNS,
        tile_bytes_per_k=(heights * a_bits + TILE_COLUMNS * scheme.bits_per_weight) / 8,
        experts=shape.expert_count,
        hit=routing.hit,
        pass_bytes=(routing.rows * row_values + 2.0 * shape.tokens * shape.hidden) * ACTIVATION_BYTES
        + (quantize_bytes if quantizes else 0.0),
        # Rows of other devices' experts are also written, as zeros, by both multiplications.
        remote_bytes=remote_rows * (row_values + up_columns + shape.hidden) * ACTIVATION_BYTES,
        flop_per_s_per_unit=hardware.peak_flop_per_s[math_dtype] / hardware.unit_count,
        clock_hz=hardware.boost_clock_hz,
        bytes_per_s=hardware.memory.bandwidth_bytes_per_s,
    )


def work_seconds(constants: Mapping[str, float], work: MoeWork) -> SheetTime:
    """Return the time of the work: launches and sorting, each multiplication's tiles and bytes overlapping, passes."""
    c = constants
    memory_s = work.pass_bytes + c["remote_row_fraction"] * work.remote_bytes
    memory_s = memory_s / (work.bytes_per_s * c["pass_bandwidth_fraction"])
    fixed_s = c["fixed_s"] + c["expert_s"] * work.experts + c["hit_expert_s"] * work.hit
    compute_s, total_s = np.zeros_like(memory_s), fixed_s + memory_s
    for grouped in work.multiplications:
        tiles_s = _tiles_s(c, work, grouped)
        stream_s = grouped.bytes / (work.bytes_per_s * c["bandwidth_fraction"])
        compute_s, memory_s = compute_s + tiles_s, memory_s + stream_s
        total_s = total_s + smooth_maximum(tiles_s, stream_s, c["overlap_exponent"])
    return SheetTime(compute_s, memory_s, fixed_s, total_s)


def _tiles_s(c: Mapping[str, float], work: MoeWork, grouped: GroupedWork) -> FloatArray:
    """Return the seconds until all tiles are done, with the best of the tile heights."""
    step_s = work.tile_flop_per_k / (work.flop_per_s_per_unit * c["compute_fraction"])
    if "dequantized_weights_per_cycle" in c:
        step_s = step_s + TILE_COLUMNS / (c["dequantized_weights_per_cycle"] * work.clock_hz)
    step_s = np.hypot(step_s, work.tile_bytes_per_k / (c["load_bytes_per_cycle"] * work.clock_hz))
    best: FloatArray = (grouped.tile_waves * (step_s * grouped.k + c["tile_overhead_s"])).min(axis=0)
    return best


def moe_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    problem = constants_problem(constants, REQUIRED_CONSTANTS, (WEIGHT_ONLY_CONSTANTS,))
    if problem is not None:
        return problem
    if not 1.0 <= constants["overlap_exponent"] <= 100.0:
        return "overlap_exponent must be from 1 to 100."
    if constants["remote_row_fraction"] > 1.0:
        return "remote_row_fraction must be at most 1."
    return None
