"""Fit the constants of codesign/cost/gemm_time.py to measured multiplications, with an honest interval.

Optional parts of the formula are kept only if they earn their place.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.fit_constants import (
    SECONDS_MAX,
    SECONDS_MIN,
    SEED,
    SIZE_MAX,
    Bounds,
    Constants,
    Mask,
    calibration,
    fit_constants,
    held_out_ratios,
    shape_index,
)
from codesign.cost.gemm_time import (
    QUANTIZING_CONSTANTS,
    REQUIRED_CONSTANTS,
    VECTOR_CONSTANTS,
    WEIGHT_ONLY_CONSTANTS,
    TilePolicy,
    gemm_math,
    gemm_work,
    tile_policy,
    work_seconds,
)
from codesign.cost.sheet import Calibration
from codesign.errors import InputError
from codesign.hardware.hardware import Hardware
from codesign.schemes.scheme import Scheme

POINTS_MIN = 12
WORK_RATIO_MIN = 4.0
GAIN_MIN = 0.05
START_COUNT = 4
SELECTION_ROWS = 500


CONSTANTS: Mapping[str, Bounds] = {
    "fixed_s": Bounds(2e-7, 1e-3, 5e-6),
    "bandwidth_fraction": Bounds(0.05, 1.0, 0.8, 0.2),
    "compute_fraction": Bounds(0.05, 1.1, 0.8, 0.2),
    "k_latency_cycles": Bounds(1e-3, 30.0, 1.0),
    "load_bytes_per_cycle": Bounds(5.0, 1e4, 200.0),
    "tile_overhead_s": Bounds(1e-8, 5e-5, 1e-6),
    "wave_fraction": Bounds(0.01, 1.0, 0.2),
    "split_s": Bounds(1e-7, 5e-5, 3e-6),
    "overlap_exponent": Bounds(1.1, 8.0, 3.0, 0.4),
    "dequantized_weights_per_cycle": Bounds(5.0, 5e3, 200.0),
    "quantize_bandwidth_fraction": Bounds(0.02, 1.0, 0.5, 0.5),
    "quantize_row_s": Bounds(1e-12, 1e-7, 3e-10),
    "vector_fixed_s": Bounds(2e-7, 1e-3, 5e-6),
    "vector_bandwidth_fraction": Bounds(0.05, 1.0, 0.75, 0.2),
    "vector_compute_fraction": Bounds(3e-3, 2.0, 0.2),
    "vector_k_latency_cycles": Bounds(1e-3, 30.0, 0.5),
    "host_s": Bounds(1e-6, 1e-3, 2e-5),
    "host_extra_s": Bounds(1e-7, 1e-3, 1e-6),
}
HOST_ROWS = 16.0


@dataclass(frozen=True, slots=True)
class Form:
    """Which constants are fitted, and which are given numbers."""

    names: tuple[str, ...]
    fixed: Mapping[str, float]
    part_count: int


@dataclass(frozen=True, slots=True)
class Part:
    """An optional part of the formula: constants to fit, and constants that are given."""

    names: tuple[str, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)


_OPTIONS = (
    Part(VECTOR_CONSTANTS),
    Part(QUANTIZING_CONSTANTS),
    Part(("host_s", "host_extra_s"), {"host_rows": HOST_ROWS}),
)
_POLICIES: tuple[tuple[Part, ...], ...] = (
    (),
    (Part(fixed={"tile_policy": float(TilePolicy.BY_ROWS)}),),
    (Part(fixed={"tile_policy": float(TilePolicy.LARGE_WHEN_FULL)}),),
)


@dataclass(frozen=True, slots=True)
class GemmRows:
    """Measured multiplications on one machine with one library under one scheme."""

    m: FloatArray
    n: FloatArray
    k: FloatArray
    seconds: FloatArray

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "GemmRows":
        """Return the rows chosen."""
        return GemmRows(self.m[rows], self.n[rows], self.k[rows], self.seconds[rows])


def fit_gemm(rows: GemmRows, hardware: Hardware, scheme: Scheme) -> Calibration:
    """Return the calibration of a scheme from measured rows; the same rows in any order give the same constants.

    InputError if there are fewer than 12 points, if a number is absurd, or if all points are alike.
    """
    rows = checked_rows(rows)
    order = np.lexsort((rows.seconds, rows.m, rows.k, rows.n))
    rows = rows.take(order)
    form = _chosen_form(_sample(rows, SELECTION_ROWS), hardware, scheme)
    constants = _fit(rows, hardware, scheme, form, START_COUNT)[0]
    ratios = _held_out_ratios(rows, hardware, scheme, form)
    return calibration(constants, ratios, _sizes(rows))


def _sizes(rows: GemmRows) -> dict[str, FloatArray]:
    return {"m": rows.m, "n": rows.n, "k": rows.k}


def checked_rows(rows: GemmRows) -> GemmRows:
    """Return the rows as float arrays; InputError names what is too little or out of range."""
    rows = GemmRows(*(as_floats(column) for column in (rows.m, rows.n, rows.k, rows.seconds)))
    if len({column.shape for column in (rows.m, rows.n, rows.k, rows.seconds)}) > 1 or rows.m.ndim != 1:
        raise InputError("m, n, k and seconds differ in length; give one of each per measured multiplication.")
    if len(rows.m) < POINTS_MIN:
        raise InputError(f"{len(rows.m)} points are too few to fit a multiplication; measure at least {POINTS_MIN}.")
    for name, column in _sizes(rows).items():
        if not np.all((column >= 1) & (column <= SIZE_MAX)):
            raise InputError(f"{name}: a value is not within 1 to {SIZE_MAX:.0f}; check the column.")
    if not np.all((rows.seconds >= SECONDS_MIN) & (rows.seconds <= SECONDS_MAX)):
        raise InputError(f"seconds: a value is not within {SECONDS_MIN:g} to {SECONDS_MAX:g}; check the unit.")
    work = rows.m * rows.n * rows.k
    if work.max() < WORK_RATIO_MIN * work.min():
        raise InputError("all points are of about the same size; measure small and large shapes.")
    return rows


def _sample(rows: GemmRows, count: int) -> GemmRows:
    """Return at most `count` rows, spread evenly at random."""
    if len(rows.m) <= count:
        return rows
    return rows.take(np.sort(np.random.default_rng(SEED).permutation(len(rows.m))[:count]))


def _chosen_form(rows: GemmRows, hardware: Hardware, scheme: Scheme) -> Form:
    """Return the simplest form that no other beats by more than 5 % of its cost per optional part."""
    choices = [[(), (option,)] for option in _OPTIONS]
    if not gemm_math(scheme, hardware)[1]:
        choices = [choice for choice in choices if choice[1][0].names != QUANTIZING_CONSTANTS]
    forms = [_form(scheme, sum(parts, ())) for parts in itertools.product(_POLICIES, *choices)]
    costs = [_fit(rows, hardware, scheme, form, 2)[1] * (1.0 + GAIN_MIN) ** form.part_count for form in forms]
    return forms[int(np.argmin(costs))]


def _form(scheme: Scheme, parts: tuple[Part, ...]) -> Form:
    required = REQUIRED_CONSTANTS + (WEIGHT_ONLY_CONSTANTS if scheme.weight_only else ())
    return Form(
        names=sum((part.names for part in parts), required),
        fixed={name: value for part in parts for name, value in part.fixed.items()},
        part_count=len(parts),
    )


def _fit(
    rows: GemmRows, hardware: Hardware, scheme: Scheme, form: Form, start_count: int = 1
) -> tuple[Constants, float]:
    """Return the best constants over several starts, and their cost."""
    work = gemm_work(hardware, scheme, rows.m, rows.n, rows.k, tile_policy(form.fixed))
    smallest_s = float(0.9 * np.quantile(rows.seconds, 0.02))
    from_data = ("host_s",) if "host_s" in form.names else ("fixed_s", "vector_fixed_s")
    # Fixed times differ most between libraries: start from the smallest time.
    bounds = {
        name: replace(bound, usual=min(max(smallest_s, bound.low), bound.high)) if name in from_data else bound
        for name, bound in ((name, CONSTANTS[name]) for name in form.names)
    }
    constants, cost = fit_constants(
        bounds, lambda c: work_seconds({**c, **form.fixed}, work).predicted_s, rows.seconds, start_count
    )
    return {**constants, **form.fixed}, cost


def _held_out_ratios(rows: GemmRows, hardware: Hardware, scheme: Scheme, form: Form) -> FloatArray:
    """Return measured over predicted of every row, predicted by a fit that saw no row of the same (n, k)."""

    def predicted_s(constants: Constants, mask: Mask) -> FloatArray:
        unseen = rows.take(mask)
        work = gemm_work(hardware, scheme, unseen.m, unseen.n, unseen.k, tile_policy(form.fixed))
        return work_seconds(constants, work).predicted_s

    return held_out_ratios(
        shape_index(rows.n, rows.k),
        rows.seconds,
        lambda mask: _fit(rows.take(mask), hardware, scheme, form)[0],
        predicted_s,
    )
