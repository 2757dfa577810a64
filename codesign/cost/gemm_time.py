"""Seconds of a matrix multiplication from a kernel sheet's constants: tiles on units, bytes on the memory, one launch.

The output is cut into tiles; a unit works through k for one tile at a time, and k may be split over units. The library
chooses tile and split by its `TilePolicy`. Every term is monotone: more m, n, k or bytes are never faster, more rate or
bandwidth never slower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats, smooth_maximum
from codesign.cost.sheet import SheetTime, constants_problem
from codesign.cost.traffic import gemm_activation_bytes, gemm_flop, quantize_activation_bytes
from codesign.errors import CapabilityError
from codesign.hardware.hardware import Hardware
from codesign.schemes.capability import capability
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes

REQUIRED_CONSTANTS = (
    "fixed_s", "bandwidth_fraction", "compute_fraction", "k_latency_cycles", "load_bytes_per_cycle",
    "tile_overhead_s", "wave_fraction", "split_s", "overlap_exponent",
)  # fmt: skip
# All of a group or none of it.
WEIGHT_ONLY_CONSTANTS = ("dequantized_weights_per_cycle",)
QUANTIZING_CONSTANTS = ("quantize_bandwidth_fraction", "quantize_row_s")
VECTOR_CONSTANTS = (
    "vector_fixed_s", "vector_bandwidth_fraction", "vector_compute_fraction", "vector_k_latency_cycles",
)  # fmt: skip
HOST_CONSTANTS = ("host_s", "host_extra_s", "host_rows")


_GROUPS = (WEIGHT_ONLY_CONSTANTS, QUANTIZING_CONSTANTS, VECTOR_CONSTANTS, HOST_CONSTANTS)


class TilePolicy(IntEnum):
    """How a library chooses the tile of the output that a unit computes (constant `tile_policy`, absent = BEST).

    BEST: the fastest. BY_ROWS: the smallest that holds all rows. LARGE_WHEN_FULL: the fastest, but the largest
    once there is one for every unit, even if a partly filled last wave makes it slower.
    """

    BEST = 0
    BY_ROWS = 1
    LARGE_WHEN_FULL = 2


_SMALL_TILES = tuple((rows, columns) for rows in (16, 64, 128) for columns in (64, 128))
TILES = {
    TilePolicy.BEST: _SMALL_TILES,
    TilePolicy.BY_ROWS: ((64, 64), (128, 64), (256, 64)),
    TilePolicy.LARGE_WHEN_FULL: (*_SMALL_TILES, (16, 256), (64, 256), (128, 256)),
}
SPLITS = (1, 2, 4, 8)
PARTIAL_SUM_BYTES = 4.0
HOST_EXPONENT = 8.0
CHUNK_ROWS = 2048


@dataclass(frozen=True, slots=True)
class GemmWork:
    """What does not depend on constants. Arrays named `tile_` are [candidate, row], the rest [row] or numbers."""

    tile_area: FloatArray
    tile_columns: FloatArray
    tile_bytes_per_k: FloatArray
    tile_waves: FloatArray
    tile_split: FloatArray
    tile_k: FloatArray
    tile_allowed: npt.NDArray[np.bool_]
    m: FloatArray
    k: FloatArray
    flop: FloatArray
    bytes: FloatArray
    output_count: FloatArray
    quantize_bytes: FloatArray
    flop_per_s_per_unit: float
    vector_flop_per_s: float
    clock_hz: float
    bytes_per_s: float


def gemm_seconds(
    constants: Mapping[str, float], hardware: Hardware, scheme: Scheme, m: FloatArray, n: FloatArray, k: FloatArray
) -> SheetTime:
    """Return the time of out[m, n] = x[m, k] · W on one device; the arrays broadcast against each other."""
    shape = np.broadcast_shapes(np.shape(m), np.shape(n), np.shape(k))
    m, n, k = (np.broadcast_to(as_floats(size), shape).ravel() for size in (m, n, k))
    policy = tile_policy(constants)
    chunks = [slice(start, start + CHUNK_ROWS) for start in range(0, max(m.size, 1), CHUNK_ROWS)]
    times = [work_seconds(constants, gemm_work(hardware, scheme, m[c], n[c], k[c], policy)) for c in chunks]
    parts = ([getattr(time, name) for time in times] for name in ("compute_s", "memory_s", "fixed_s", "predicted_s"))
    return SheetTime(*(np.concatenate(part).reshape(shape) for part in parts))


def gemm_work(
    hardware: Hardware,
    scheme: Scheme,
    m: FloatArray,
    n: FloatArray,
    k: FloatArray,
    policy: TilePolicy = TilePolicy.BEST,
) -> GemmWork:
    """Return tiles, bytes and rates of the multiplications; m, n and k are one-dimensional and of equal length."""
    math_dtype, quantizes = gemm_math(scheme, hardware)
    a_bits = scheme.activations.bits if quantizes else 16.0
    candidates = np.array([(*tile, split) for tile in TILES[policy] for split in SPLITS], dtype=np.float64)
    rows, columns, split = (candidates[:, [column]] for column in range(3))
    tile_count = np.ceil(m / rows) * np.ceil(n / columns)
    return GemmWork(
        tile_area=rows * columns,
        tile_columns=columns,
        tile_bytes_per_k=(rows * a_bits + columns * scheme.bits_per_weight) / 8,
        tile_waves=tile_count * split / hardware.unit_count,
        tile_split=split,
        tile_k=k / split,
        tile_allowed=_allowed(policy, rows, columns, m, tile_count[-1] >= hardware.unit_count),
        m=m,
        k=k,
        flop=gemm_flop(m, n, k),
        bytes=weight_bytes(scheme, n.astype(np.int64), k.astype(np.int64)) + gemm_activation_bytes(m, n, k, a_bits),
        output_count=m * n,
        quantize_bytes=quantize_activation_bytes(m, k, a_bits) if quantizes else np.zeros_like(m),
        flop_per_s_per_unit=hardware.peak_flop_per_s[math_dtype] / hardware.unit_count,
        vector_flop_per_s=hardware.peak_flop_per_s.get("fp32", hardware.peak_flop_per_s[math_dtype]),
        clock_hz=hardware.boost_clock_hz,
        bytes_per_s=hardware.memory.bandwidth_bytes_per_s,
    )


def _allowed(
    policy: TilePolicy, rows: FloatArray, columns: FloatArray, m: FloatArray, full: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return which candidates the library considers; `full` says that the largest tile, the last one, fills all units.

    A policy that forbids more as m and n grow keeps time monotone.
    """
    if policy is TilePolicy.BY_ROWS:
        smallest, largest = rows.min(), rows.max()
        allowed: npt.NDArray[np.bool_] = (rows == smallest) & (m <= smallest)
        allowed |= (rows > smallest) & (m > rows / 2) & ((m <= rows) | (rows == largest))
        return allowed
    if policy is TilePolicy.LARGE_WHEN_FULL:
        area = rows * columns
        allowed = (area == area.max()) | ~full
        return allowed
    return np.ones((len(rows), 1), dtype=np.bool_)


def tile_policy(constants: Mapping[str, float]) -> TilePolicy:
    """Return how the library chooses tiles."""
    return TilePolicy(int(constants.get("tile_policy", TilePolicy.BEST)))


def gemm_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    if constants.get("tile_policy", TilePolicy.BEST) not in tuple(TilePolicy):
        return (
            f"tile_policy is {constants['tile_policy']:g}; allowed are 0 (best), 1 (by rows) and 2 (large when full)."
        )
    others = {name: value for name, value in constants.items() if name != "tile_policy"}
    problem = constants_problem(others, REQUIRED_CONSTANTS, _GROUPS)
    if problem is None and (not 1.0 <= constants["overlap_exponent"] <= 100.0 or constants["wave_fraction"] > 1.0):
        return "overlap_exponent must be from 1 to 100, and wave_fraction at most 1."
    return problem


def gemm_math(scheme: Scheme, hardware: Hardware) -> tuple[str, bool]:
    """Return what the scheme multiplies in on the machine, and whether activations are quantized for it."""
    can = capability(scheme, hardware)
    if can.math_dtype is None:
        raise CapabilityError(f"{scheme} does not run on {hardware.name}: {can.reason}")
    as_stored = can.level == "native" or can.math_dtype.startswith("int")
    return can.math_dtype, scheme.quantized and not scheme.weight_only and as_stored


def work_seconds(constants: Mapping[str, float], work: GemmWork) -> SheetTime:
    """Return the time of the work: launch, then tiles and bytes overlapping, then the pass that quantizes."""
    c = constants
    exponent = c["overlap_exponent"]
    compute_s = _tiles_s(c, work)
    memory_s = work.bytes / (work.bytes_per_s * c["bandwidth_fraction"])
    fixed_s = np.full_like(memory_s, c["fixed_s"])
    total_s = fixed_s + smooth_maximum(memory_s, compute_s, exponent)
    if "vector_fixed_s" in c:
        vector_compute_s = work.flop / (work.vector_flop_per_s * c["vector_compute_fraction"])
        vector_compute_s = vector_compute_s + work.k * c["vector_k_latency_cycles"] / work.clock_hz
        vector_memory_s = work.bytes / (work.bytes_per_s * c["vector_bandwidth_fraction"])
        vector_s = c["vector_fixed_s"] + smooth_maximum(vector_memory_s, vector_compute_s, exponent)
        faster = vector_s < total_s
        compute_s = np.where(faster, vector_compute_s, compute_s)
        memory_s = np.where(faster, vector_memory_s, memory_s)
        fixed_s = np.where(faster, c["vector_fixed_s"], fixed_s)
        total_s = np.minimum(total_s, vector_s)
    if "quantize_row_s" in c:
        quantize_s = work.quantize_bytes / (work.bytes_per_s * c["quantize_bandwidth_fraction"])
        quantize_s = quantize_s + work.m * c["quantize_row_s"]
        memory_s, total_s = memory_s + quantize_s, total_s + quantize_s
    if "host_s" in c:
        host_s = c["host_s"] + np.where(work.m > c["host_rows"], c["host_extra_s"], 0.0)
        fixed_s, total_s = np.maximum(fixed_s, host_s), smooth_maximum(total_s, host_s, HOST_EXPONENT)
    return SheetTime(compute_s, memory_s, fixed_s, total_s)


def _tiles_s(c: Mapping[str, float], work: GemmWork) -> FloatArray:
    """Return the seconds until all tiles are done, with the best of the candidate tiles and splits.

    Waves of tiles count partly whole (`wave_fraction`), since persistent kernels and uneven tiles fill the last one.
    """
    whole = c["wave_fraction"]
    waves = np.maximum(1.0, (1.0 - whole) * work.tile_waves + whole * np.ceil(work.tile_waves))
    step_s = 2.0 * work.tile_area / (work.flop_per_s_per_unit * c["compute_fraction"])
    if "dequantized_weights_per_cycle" in c:
        step_s = step_s + work.tile_columns / (c["dequantized_weights_per_cycle"] * work.clock_hz)
    load_cycles = c["k_latency_cycles"] + work.tile_bytes_per_k / c["load_bytes_per_cycle"]
    step_s = np.hypot(step_s, load_cycles / work.clock_hz)
    partial_bytes = work.tile_split * PARTIAL_SUM_BYTES * work.output_count
    reduce_s = c["split_s"] + partial_bytes / (work.bytes_per_s * c["bandwidth_fraction"])
    seconds = waves * (step_s * work.tile_k + c["tile_overhead_s"]) + np.where(work.tile_split > 1, reduce_s, 0.0)
    best: FloatArray = np.where(work.tile_allowed, seconds, np.inf).min(axis=0)
    return best
