"""Seconds of a matrix multiplication on the cores of a CPU from a kernel sheet's constants.

Memory and arithmetic overlap; weights in few bits are unpacked once for every pass over the rows; a second path for few
rows, which many libraries have, is taken where it is faster, or up to a number of rows. More m, n, k are never faster.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats, smooth_maximum
from codesign.cost.gemm_time import gemm_math
from codesign.cost.sheet import SheetTime, constants_problem
from codesign.cost.traffic import gemm_activation_bytes, gemm_flop
from codesign.hardware.hardware import Hardware
from codesign.hardware.threads import with_threads
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes
from codesign.units import GIGA

CPU_REQUIRED_CONSTANTS = (
    "fixed_s", "bandwidth_fraction", "compute_fraction", "unpacked_weights_per_cycle", "thread_fraction",
    "overlap_exponent",
)  # fmt: skip
FEW_ROWS_CONSTANTS = ("few_rows_bandwidth_fraction", "few_rows_compute_fraction")
# Rows of a pass; absent where the weights are unpacked once for all rows.
PASS_CONSTANTS = ("pass_rows",)
# Rows up to which the library takes its path for few, though the other is faster from fewer on.
SWITCH_CONSTANTS = ("few_rows_max",)


@dataclass(frozen=True, slots=True)
class CpuGemmWork:
    """What does not depend on constants, an entry per row; rates are those of the threads that work."""

    m: FloatArray
    weight_count: FloatArray
    flop: FloatArray
    bytes: FloatArray
    threads: FloatArray
    flop_per_s: FloatArray
    bytes_per_s: FloatArray
    clock_hz: float


@dataclass(frozen=True, slots=True)
class CpuState:
    """In which state of the machine each row ran: its working threads, and what memory gave to them."""

    threads: FloatArray
    bytes_per_s: FloatArray


def cpu_state(hardware: Hardware, threads: FloatArray, gb_per_s: FloatArray | None = None) -> CpuState:
    """Return the state of rows; 0 threads are all cores, 0 GB/s (10^9 B/s) what the profile says of its memory."""
    threads = np.where(threads > 0, threads, float(hardware.unit_count))
    counts, row = np.unique(threads, return_inverse=True)
    stated = np.array([with_threads(hardware, int(count)).memory.bandwidth_bytes_per_s for count in counts])[row]
    return CpuState(threads, stated if gb_per_s is None else np.where(gb_per_s > 0, gb_per_s * GIGA, stated))


def is_cpu_sheet(constants: Mapping[str, float]) -> bool:
    """Return whether the constants are those of this formula."""
    return "unpacked_weights_per_cycle" in constants


def cpu_gemm_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    groups = (FEW_ROWS_CONSTANTS, PASS_CONSTANTS, SWITCH_CONSTANTS)
    problem = constants_problem(constants, CPU_REQUIRED_CONSTANTS, groups)
    if problem is None and "few_rows_max" in constants and "few_rows_compute_fraction" not in constants:
        return "few_rows_max needs the constants of the path for few rows."
    if problem is None and (not 1.0 <= constants["overlap_exponent"] <= 100.0 or constants["thread_fraction"] > 1.0):
        return "overlap_exponent must be from 1 to 100, and thread_fraction at most 1."
    return problem


def cpu_gemm_work(
    hardware: Hardware, scheme: Scheme, m: FloatArray, n: FloatArray, k: FloatArray, state: CpuState
) -> CpuGemmWork:
    """Return work and rates of out[m, n] = x[m, k] · W in the machine's state; one-dimensional arrays."""
    math_dtype, quantizes = gemm_math(scheme, hardware)
    a_bits = scheme.activations.bits if quantizes else 16.0
    share = np.minimum(1.0, state.threads / hardware.unit_count)
    weights = as_floats(weight_bytes(scheme, n.astype(np.int64), k.astype(np.int64)))
    return CpuGemmWork(
        m=m,
        weight_count=n * k,
        flop=gemm_flop(m, n, k),
        bytes=weights + gemm_activation_bytes(m, n, k, a_bits),
        threads=state.threads,
        flop_per_s=hardware.peak_flop_per_s[math_dtype] * share,
        bytes_per_s=state.bytes_per_s,
        clock_hz=hardware.boost_clock_hz,
    )


def cpu_gemm_seconds(
    constants: Mapping[str, float], hardware: Hardware, scheme: Scheme, m: FloatArray, n: FloatArray, k: FloatArray
) -> SheetTime:
    """Return the time on all cores of the machine, see `with_threads` for fewer; the arrays have one shape."""
    shape = np.shape(m)
    state = cpu_state(hardware, np.zeros(np.size(m)))
    work = cpu_gemm_work(hardware, scheme, np.ravel(m), np.ravel(n), np.ravel(k), state)
    time = cpu_work_seconds(constants, work)
    parts = (time.compute_s, time.memory_s, time.fixed_s, time.predicted_s)
    return SheetTime(*(part.reshape(shape) for part in parts))


def cpu_work_seconds(constants: Mapping[str, float], work: CpuGemmWork) -> SheetTime:
    """Return a fixed time and the smooth maximum of memory and arithmetic, on the faster of the two paths."""
    c = constants
    together = c["thread_fraction"] ** np.log2(work.threads)  # the share kept at each doubling of the threads
    passes = np.ceil(work.m / c["pass_rows"]) if "pass_rows" in c else np.ones_like(work.m)
    unpack_s = passes * work.weight_count / (c["unpacked_weights_per_cycle"] * work.threads * work.clock_hz)
    compute_s = (work.flop / (work.flop_per_s * c["compute_fraction"]) + unpack_s) / together
    memory_s = work.bytes / (work.bytes_per_s * c["bandwidth_fraction"])
    busy_s = smooth_maximum(memory_s, compute_s, c["overlap_exponent"])
    if "few_rows_compute_fraction" in c:
        few_max = c.get("few_rows_max", np.inf)
        few_flop = work.flop * np.minimum(few_max / work.m, 1.0)
        few_compute_s = few_flop / (work.flop_per_s * c["few_rows_compute_fraction"]) / together
        few_memory_s = work.bytes / (work.bytes_per_s * c["few_rows_bandwidth_fraction"])
        few_s = smooth_maximum(few_memory_s, few_compute_s, c["overlap_exponent"])
        if np.isfinite(few_max):  # beyond, few_s is of the largest number of them: more rows take no less
            takes_few, busy_s = work.m <= few_max, np.maximum(busy_s, few_s)
        else:
            takes_few = few_s < busy_s
        compute_s, memory_s = np.where(takes_few, few_compute_s, compute_s), np.where(takes_few, few_memory_s, memory_s)
        busy_s = np.where(takes_few, few_s, busy_s)
    fixed_s = np.full_like(busy_s, c["fixed_s"])
    return SheetTime(compute_s, memory_s, fixed_s, fixed_s + busy_s)
