"""Fit the constants of any operation's formula to measured times, with an interval from rows that the fit did not see.

The squared logarithm of predicted over measured is minimised, damped for outliers (soft L1), and a weak pull towards
usual values decides what few points leave open. Everything is deterministic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from codesign.cost.arrays import FloatArray
from codesign.cost.sheet import Calibration

Mask = npt.NDArray[np.bool_]
Constants = Mapping[str, float]

OUTLIER_LOG = 0.06
PRIOR_WEIGHT = 0.06
START_SPREAD = 0.4
FOLD_COUNT = 5
COVERAGE = 0.8
SECONDS_MIN, SECONDS_MAX = 1e-7, 1e4
SIZE_MAX = 2.0**24
SEED = 20261121


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest, largest and usual value of a constant, and how far (as a factor's logarithm) it usually strays."""

    low: float
    high: float
    usual: float
    spread: float = 1.0


def fit_constants(
    bounds: Mapping[str, Bounds],
    predicted_s: Callable[[Constants], FloatArray],
    measured_s: FloatArray,
    start_count: int = 1,
) -> tuple[dict[str, float], float]:
    """Return the best constants over several starts, rounded to four digits, and their cost.

    The first start is the usual value of every constant; `predicted_s` gets constants by name.
    """
    names = tuple(bounds)
    low, high, usual = (np.log([getattr(bounds[name], end) for name in names]) for end in ("low", "high", "usual"))
    spread = np.array([bounds[name].spread for name in names])

    def residuals(x: FloatArray) -> FloatArray:
        seconds = predicted_s(dict(zip(names, np.exp(x), strict=True)))
        return np.concatenate([np.log(seconds / measured_s), PRIOR_WEIGHT * (x - usual) / spread])

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
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(best.x), strict=True)}, float(best.cost)


def shape_index(*sizes: FloatArray) -> npt.NDArray[np.intp]:
    """Return for each row which combination of sizes it has, as a number from 0."""
    index: npt.NDArray[np.intp] = np.unique(np.stack(sizes), axis=1, return_inverse=True)[1].ravel()
    return index


def held_out_ratios(
    index: npt.NDArray[np.intp],
    measured_s: FloatArray,
    fit: Callable[[Mask], Constants],
    predicted_s: Callable[[Constants, Mask], FloatArray],
) -> FloatArray:
    """Return measured over predicted of every row, predicted by a fit that saw no row of the same `index`.

    `fit` gets the rows to learn from as a mask, `predicted_s` the rows to predict.
    """
    fold_of_shape = np.random.default_rng(SEED).permutation(index.max() + 1) % FOLD_COUNT
    fold = fold_of_shape[index]
    ratios = np.ones_like(measured_s)
    for held_out in np.unique(fold):
        test = fold == held_out
        constants = fit(~test if not test.all() else test)
        ratios[test] = measured_s[test] / predicted_s(constants, test)
    return ratios


def interval_factors(ratios: FloatArray, coverage: float = COVERAGE) -> tuple[float, float]:
    """Return the factors around a prediction that hold `coverage` of the measured over predicted ratios.

    Quantiles with the finite-sample correction of conformal prediction. Source: Vovk et al. 2005, split conformal.
    """
    count = len(ratios)
    upper = min(1.0, (1.0 + coverage) / 2.0 * (count + 1) / count)
    low, high = np.quantile(ratios, [1.0 - upper, upper])
    return float(f"{min(low, 1.0):.4g}"), float(f"{max(high, 1.0):.4g}")


def calibration(constants: Constants, ratios: FloatArray, sizes: Mapping[str, FloatArray]) -> Calibration:
    """Return the constants with the interval and error of the held-out ratios and the range of the fitted sizes."""
    low, high = interval_factors(ratios)
    return Calibration(
        constants=constants,
        low_factor=low,
        high_factor=high,
        sample_count=len(ratios),
        error_fraction=float(f"{np.mean(np.abs(1.0 / ratios - 1.0)):.4g}"),
        fit_range={name: (float(column.min()), float(column.max())) for name, column in sizes.items()},
    )
