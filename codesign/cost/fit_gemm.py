"""Fit the constants of codesign/cost/gemm_time.py to measured multiplications, with an honest interval.

The squared logarithm of predicted over measured is minimised, damped for outliers (soft L1), and a weak pull towards
usual values decides what few points leave open. Optional parts of the formula are kept only if they earn their place.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from codesign.cost.arrays import FloatArray, as_floats
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
SECONDS_MIN, SECONDS_MAX = 1e-7, 1e4
SIZE_MAX = 2.0**24
WORK_RATIO_MIN = 4.0
OUTLIER_LOG = 0.06
PRIOR_WEIGHT = 0.06
GAIN_MIN = 0.05
START_COUNT, START_SPREAD = 4, 0.4
FOLD_COUNT = 5
SELECTION_ROWS = 500
COVERAGE = 0.8
SEED = 20261121


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest, largest and usual value of a constant, and how far (as a factor's logarithm) it usually strays."""

    low: float
    high: float
    usual: float
    spread: float = 1.0


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

    @property
    def shape_index(self) -> npt.NDArray[np.intp]:
        """Return for each row which (n, k) it has, as a number from 0."""
        index: npt.NDArray[np.intp] = np.unique(np.stack([self.n, self.k]), axis=1, return_inverse=True)[1].ravel()
        return index


def fit_gemm(rows: GemmRows, hardware: Hardware, scheme: Scheme) -> Calibration:
    """Return the calibration of a scheme from measured rows; the same rows in any order give the same constants.

    InputError if there are fewer than 12 points, if a number is absurd, or if all points are alike.
    """
    rows = _checked(rows)
    order = np.lexsort((rows.seconds, rows.m, rows.k, rows.n))
    rows = rows.take(order)
    form = _chosen_form(_sample(rows, SELECTION_ROWS), hardware, scheme)
    constants = _fit(rows, hardware, scheme, form, START_COUNT)[0]
    ratios = _held_out_ratios(rows, hardware, scheme, form)
    low, high = interval_factors(ratios)
    return Calibration(
        constants=constants,
        low_factor=low,
        high_factor=high,
        sample_count=len(rows.m),
        error_fraction=float(f"{np.mean(np.abs(1.0 / ratios - 1.0)):.4g}"),
        fit_range={name: (float(column.min()), float(column.max())) for name, column in _sizes(rows).items()},
    )


def _sizes(rows: GemmRows) -> dict[str, FloatArray]:
    return {"m": rows.m, "n": rows.n, "k": rows.k}


def _checked(rows: GemmRows) -> GemmRows:
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
) -> tuple[dict[str, float], float]:
    """Return the best constants over several starts, and their cost."""
    work = gemm_work(hardware, scheme, rows.m, rows.n, rows.k, tile_policy(form.fixed))
    bounds = [CONSTANTS[name] for name in form.names]
    low, high, usual = (np.log([getattr(bound, end) for bound in bounds]) for end in ("low", "high", "usual"))
    floor = np.log(0.9 * np.quantile(rows.seconds, 0.02))
    from_data = ("host_s",) if "host_s" in form.names else ("fixed_s", "vector_fixed_s")
    for index, name in enumerate(form.names):  # fixed times differ most between libraries: start from the smallest
        if name in from_data:
            usual[index] = np.clip(floor, low[index], high[index])
    spread = np.array([bound.spread for bound in bounds])

    def residuals(x: FloatArray) -> FloatArray:
        constants = dict(zip(form.names, np.exp(x), strict=True))
        predicted_s = work_seconds({**constants, **form.fixed}, work).predicted_s
        return np.concatenate([np.log(predicted_s / rows.seconds), PRIOR_WEIGHT * (x - usual) / spread])

    rng = np.random.default_rng(SEED)
    starts = [usual + START_SPREAD * index * rng.normal(size=usual.size) * spread for index in range(start_count)]
    margin = 1e-3
    fits = [
        least_squares(
            residuals, np.clip(start, low + margin, high - margin), bounds=(low, high), loss="soft_l1",
            f_scale=OUTLIER_LOG, diff_step=1e-3, max_nfev=80, ftol=1e-6, xtol=1e-6,
        )
        for start in starts
    ]  # fmt: skip
    best = min(fits, key=lambda fit: float(fit.cost))
    constants = {name: float(f"{value:.4g}") for name, value in zip(form.names, np.exp(best.x), strict=True)}
    return {**constants, **form.fixed}, float(best.cost)


def _held_out_ratios(rows: GemmRows, hardware: Hardware, scheme: Scheme, form: Form) -> FloatArray:
    """Return measured over predicted of every row, predicted by a fit that saw no row of the same (n, k)."""
    index = rows.shape_index
    fold_of_shape = np.random.default_rng(SEED).permutation(index.max() + 1) % FOLD_COUNT
    fold = fold_of_shape[index]
    ratios = np.ones_like(rows.seconds)
    for held_out in np.unique(fold):
        test = fold == held_out
        training = rows.take(~test) if not test.all() else rows
        constants = _fit(training, hardware, scheme, form)[0]
        unseen = rows.take(test)
        work = gemm_work(hardware, scheme, unseen.m, unseen.n, unseen.k, tile_policy(form.fixed))
        ratios[test] = unseen.seconds / work_seconds(constants, work).predicted_s
    return ratios


def interval_factors(ratios: FloatArray, coverage: float = COVERAGE) -> tuple[float, float]:
    """Return the factors around a prediction that hold `coverage` of the measured over predicted ratios.

    Quantiles with the finite-sample correction of conformal prediction. Source: Vovk et al. 2005, split conformal.
    """
    count = len(ratios)
    upper = min(1.0, (1.0 + coverage) / 2.0 * (count + 1) / count)
    low, high = np.quantile(ratios, [1.0 - upper, upper])
    return float(f"{min(low, 1.0):.4g}"), float(f"{max(high, 1.0):.4g}")
