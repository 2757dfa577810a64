"""Seconds of attention over a KV cache on the cores of a CPU from a kernel sheet's constants.

Reading keys and values overlaps with arithmetic: each element is unpacked once and meets every query head of its
group.
"""

from collections.abc import Mapping

import numpy as np

from codesign.cost.arrays import FloatArray, smooth_maximum
from codesign.cost.attention_time import AttentionWork, kv_bytes
from codesign.cost.sheet import SheetTime, constants_problem

CPU_ATTENTION_CONSTANTS = (
    "fixed_s", "bandwidth_fraction", "query_elements_per_cycle", "kv_elements_per_cycle", "thread_fraction",
    "overlap_exponent",
)  # fmt: skip


# Queries of a prompt go in tiles of so many, which are computed whole where only some may see a key.
QUERY_TILE = ("query_tile",)


def is_cpu_attention_sheet(constants: Mapping[str, float]) -> bool:
    """Return whether the constants are those of this formula."""
    return "query_elements_per_cycle" in constants


def cpu_attention_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    problem = constants_problem(constants, CPU_ATTENTION_CONSTANTS, (QUERY_TILE,))
    if problem is None and (not 1.0 <= constants["overlap_exponent"] <= 100.0 or constants["thread_fraction"] > 1.0):
        return "overlap_exponent must be from 1 to 100, and thread_fraction at most 1."
    return problem


def cpu_attention_seconds(constants: Mapping[str, float], work: AttentionWork) -> SheetTime:
    """Return a fixed time and the smooth maximum of reading and arithmetic; `unit_count` of the work are the threads.

    An element counts once in keys and once in values.
    """
    c = constants
    threads = work.unit_count
    cycles_per_s = threads * work.clock_hz * c["thread_fraction"] ** np.log2(threads)
    beyond = np.where(work.query_tokens > 1, (c.get("query_tile", 1.0) - 1.0) / 2.0, 0.0)
    seen_elements: FloatArray = 2.0 * work.batch * work.query_tokens * (work.seen_tokens + beyond) * work.head_dim
    kept_elements: FloatArray = 2.0 * work.batch * work.kv_tokens * work.head_dim
    cycles = (
        seen_elements * work.heads / c["query_elements_per_cycle"]
        + kept_elements * work.kv_heads / c["kv_elements_per_cycle"]
    )
    compute_s = cycles / cycles_per_s
    memory_s = kv_bytes(work) / (work.bytes_per_s * c["bandwidth_fraction"])
    fixed_s = np.full_like(memory_s, c["fixed_s"])
    busy_s = smooth_maximum(memory_s, compute_s, c["overlap_exponent"])
    return SheetTime(compute_s, memory_s, fixed_s, fixed_s + busy_s)
