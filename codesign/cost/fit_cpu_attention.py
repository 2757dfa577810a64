"""Fit the constants of codesign/cost/cpu_attention_time.py to attention measured on some threads of a CPU."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.attention_time import AttentionWork, attention_work
from codesign.cost.cpu_attention_time import QUERY_TILE, cpu_attention_seconds
from codesign.cost.cpu_gemm_time import CpuState
from codesign.cost.fit_attention import AttentionRows
from codesign.cost.fit_constants import (
    SECONDS_MAX,
    SECONDS_MIN,
    Bounds,
    Constants,
    Mask,
    calibration,
    fit_constants,
    held_out_ratios,
    shape_index,
)
from codesign.cost.sheet import Calibration
from codesign.errors import InputError
from codesign.hardware.hardware import Hardware
from codesign.schemes.kv import KvFormat, bytes_per_token

POINTS_MIN = 8
START_COUNT = 3
QUERY_TILES = (1.0, 32.0, 64.0)
BOUNDS: Mapping[str, Bounds] = {
    "fixed_s": Bounds(1e-7, 1e-2, 5e-6),
    "bandwidth_fraction": Bounds(5e-3, 1.5, 0.8, 0.3),
    "query_elements_per_cycle": Bounds(1e-2, 1e3, 8.0, 1.5),
    "kv_elements_per_cycle": Bounds(1e-2, 1e4, 32.0, 1.5),
    "thread_fraction": Bounds(0.4, 1.0, 0.95, 0.1),
    "overlap_exponent": Bounds(1.0, 8.0, 3.0, 0.5),
}


def fit_cpu_attention(rows: AttentionRows, state: CpuState, hardware: Hardware, kv: KvFormat) -> Calibration:
    """Return the calibration of a KV format from measured rows and the state of the machine at each.

    InputError if there are fewer than 8 points, or times out of range.
    """
    if len(rows.seconds) < POINTS_MIN:
        raise InputError(f"{len(rows.seconds)} points are too few to fit attention; measure at least {POINTS_MIN}.")
    if not np.all((rows.seconds >= SECONDS_MIN) & (rows.seconds <= SECONDS_MAX)):
        raise InputError(f"seconds: a value is not within {SECONDS_MIN:g} to {SECONDS_MAX:g}; check the unit.")
    work = _work(rows, state, hardware, kv)
    everything = np.ones(len(rows.seconds), dtype=np.bool_)
    ratios = held_out_ratios(
        shape_index(rows.batch, rows.kv_tokens, rows.heads, rows.kv_heads),
        rows.seconds,
        lambda mask: _fit(rows, work, mask),
        lambda constants, mask: cpu_attention_seconds(constants, _take(work, mask)).predicted_s,
    )
    names = ("batch", "query_tokens", "kv_tokens", "heads", "kv_heads")
    return calibration(_fit(rows, work, everything), ratios, {name: getattr(rows, name) for name in names})


def _work(rows: AttentionRows, state: CpuState, hardware: Hardware, kv: KvFormat) -> AttentionWork:
    """Return the work, with the threads and the bandwidth of each row."""
    dims = rows.head_dim.astype(np.int64)
    math_dtype = next(iter(hardware.peak_flop_per_s))  # its rate is not used
    work = attention_work(hardware, math_dtype, rows.shape, as_floats(bytes_per_token(kv, 2 * dims, dims)))
    return replace(
        work,
        unit_count=state.threads,  # type: ignore[arg-type]  # elementwise, as the other sizes
        bytes_per_s=state.bytes_per_s,  # type: ignore[arg-type]
    )


def _take(work: AttentionWork, mask: Mask) -> AttentionWork:
    columns = {field.name: getattr(work, field.name) for field in fields(work)}
    taken: dict[str, Any] = {name: one[mask] for name, one in columns.items() if isinstance(one, np.ndarray)}
    return replace(work, **taken)


def _fit(rows: AttentionRows, work: AttentionWork, mask: Mask) -> Constants:
    """Return the best constants; tiles of queries are tried where prompts were measured."""
    part, seconds = _take(work, mask), rows.seconds[mask]
    tiles = QUERY_TILES if np.any(part.query_tokens > 1) else (None,)
    return min((_fit_tile(part, seconds, tile) for tile in tiles), key=lambda found: found[1])[0]


def _fit_tile(part: AttentionWork, seconds: FloatArray, tile: float | None) -> tuple[Constants, float]:
    """Return the best constants beside that of the tile, all of them, and their cost."""
    fixed = {} if tile is None else {QUERY_TILE[0]: tile}
    found, cost = fit_constants(
        BOUNDS, lambda c: cpu_attention_seconds({**c, **fixed}, part).predicted_s, seconds, START_COUNT
    )
    return {**found, **fixed}, cost
