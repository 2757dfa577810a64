"""Fit the constants of codesign/cost/moe_time.py to measured experts, with an honest interval."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.fit_constants import (
    SECONDS_MAX,
    SECONDS_MIN,
    SIZE_MAX,
    Bounds,
    Constants,
    Mask,
    calibration,
    fit_constants,
    held_out_ratios,
    shape_index,
)
from codesign.cost.moe_time import (
    REQUIRED_CONSTANTS,
    WEIGHT_ONLY_CONSTANTS,
    Index,
    MoeShape,
    moe_work,
    work_seconds,
)
from codesign.cost.sheet import Calibration
from codesign.errors import InputError
from codesign.hardware.hardware import Hardware
from codesign.schemes.scheme import Scheme

POINTS_MIN = 12
EXPERTS_MAX = 2.0**14
SKEW_MAX = 10.0
WORK_RATIO_MIN = 4.0
START_COUNT = 3
MODELS_MIN = 3
# Sizes that the interval widens with; routing is given, not extrapolated.
RANGED = ("tokens", "hidden", "intermediate", "expert_count", "top_k")

CONSTANTS: Mapping[str, Bounds] = {
    "fixed_s": Bounds(2e-6, 1e-3, 2e-5),
    "expert_s": Bounds(1e-10, 1e-6, 3e-8),
    "hit_expert_s": Bounds(1e-10, 1e-5, 3e-8),
    "bandwidth_fraction": Bounds(0.05, 1.0, 0.8, 0.2),
    "compute_fraction": Bounds(0.05, 1.1, 0.7, 0.2),
    "load_bytes_per_cycle": Bounds(5.0, 1e4, 200.0),
    "tile_overhead_s": Bounds(1e-8, 5e-5, 1e-6),
    "overlap_exponent": Bounds(1.1, 8.0, 3.0, 0.4),
    "pass_bandwidth_fraction": Bounds(0.02, 1.5, 0.5, 0.5),
    "remote_row_fraction": Bounds(1e-3, 1.0, 0.3),
    "dequantized_weights_per_cycle": Bounds(5.0, 5e3, 200.0),
}


@dataclass(frozen=True, slots=True)
class MoeRows:
    """Measured experts on one machine with one library under one scheme."""

    shape: MoeShape
    seconds: FloatArray

    def take(self, rows: Index) -> "MoeRows":
        """Return the rows chosen."""
        return MoeRows(self.shape.take(rows), self.seconds[rows])


def fit_moe(rows: MoeRows, hardware: Hardware, scheme: Scheme) -> Calibration:
    """Return the calibration of a scheme from measured rows; the same rows in any order give the same constants.

    InputError if there are fewer than 12 points, if a number is absurd, or if all points are alike.
    """
    rows = _comparable(_checked(rows))
    rows = rows.take(np.lexsort((rows.seconds, *rows.shape.columns())))
    constants = _fit(rows, hardware, scheme, START_COUNT)

    def predicted_s(fitted: Constants, mask: Mask) -> FloatArray:
        return work_seconds(fitted, moe_work(hardware, scheme, rows.shape.take(mask))).predicted_s

    ratios = held_out_ratios(
        held_out_index(rows.shape), rows.seconds, lambda mask: _fit(rows.take(mask), hardware, scheme), predicted_s
    )
    return calibration(constants, ratios, {name: getattr(rows.shape, name) for name in RANGED})


def held_out_index(shape: MoeShape) -> npt.NDArray[np.intp]:
    """Return what is held out together: rows of one model; with less than three models, of one division of it."""
    model = (shape.hidden, shape.expert_count, shape.top_k)
    index = shape_index(*model)
    return index if index.max() + 1 >= MODELS_MIN else shape_index(*model, shape.intermediate, shape.expert_parallel)


def _fit(rows: MoeRows, hardware: Hardware, scheme: Scheme, start_count: int = 1) -> dict[str, float]:
    names = REQUIRED_CONSTANTS + (WEIGHT_ONLY_CONSTANTS if scheme.weight_only else ())
    work = moe_work(hardware, scheme, rows.shape)
    smallest_s = float(0.9 * np.quantile(rows.seconds, 0.02))
    # The fixed time differs most between libraries: start from the smallest time.
    fixed = CONSTANTS["fixed_s"]
    bounds = {name: CONSTANTS[name] for name in names}
    bounds["fixed_s"] = replace(fixed, usual=min(max(smallest_s, fixed.low), fixed.high))
    return fit_constants(bounds, lambda c: work_seconds(c, work).predicted_s, rows.seconds, start_count)[0]


def _comparable(rows: MoeRows) -> MoeRows:
    """Return the rows without those of skewed routing that have no more choices than experts.

    Which expert gets a row there is a matter of rounding, and versions of the benchmark differ: the older one (A100,
    TensorRT-LLM 1.0.0) gives all of them to one device. With these rows its constants predict H100 with 27 % error,
    without them with 19 %.
    """
    shape = rows.shape
    kept = rows.take((shape.skew == 0) | (shape.tokens * shape.top_k > shape.expert_count))
    if len(kept.seconds) < POINTS_MIN:
        raise InputError(
            f"{len(kept.seconds)} points have balanced routing or tokens x top_k above expert_count; measure at least "
            f"{POINTS_MIN} of these."
        )
    return kept


def _checked(rows: MoeRows) -> MoeRows:
    """Return the rows as float arrays; InputError names what is too little or out of range."""
    names = [field.name for field in fields(MoeShape)]
    columns = [as_floats(column) for column in (*rows.shape.columns(), rows.seconds)]
    if len({column.shape for column in columns}) > 1 or columns[-1].ndim != 1:
        raise InputError(f"{', '.join(names)} and seconds differ in length; give one of each per measured block.")
    if len(columns[-1]) < POINTS_MIN:
        raise InputError(f"{len(columns[-1])} points are too few to fit experts; measure at least {POINTS_MIN}.")
    for name, column in zip(names, columns, strict=False):
        low, high = {"skew": (0.0, SKEW_MAX), "expert_count": (1.0, EXPERTS_MAX)}.get(name, (1.0, SIZE_MAX))
        if not np.all((column >= low) & (column <= high)):
            raise InputError(f"{name}: a value is not within {low:.0f} to {high:.0f}; check the column.")
    if not np.all((columns[-1] >= SECONDS_MIN) & (columns[-1] <= SECONDS_MAX)):
        raise InputError(f"seconds: a value is not within {SECONDS_MIN:g} to {SECONDS_MAX:g}; check the unit.")
    checked = MoeRows(MoeShape(*columns[:-1]), columns[-1])
    _check_combinations(checked.shape)
    return checked


def _check_combinations(shape: MoeShape) -> None:
    if np.any(shape.top_k > shape.expert_count):
        raise InputError("top_k is larger than expert_count in a row; a token goes to different experts.")
    if np.any(shape.expert_count % shape.expert_parallel != 0):
        raise InputError("expert_parallel must divide expert_count; check both columns.")
    if np.any(shape.matrix_count < 2):
        raise InputError("matrix_count is below 2; experts have up and down, and mostly a gate.")
    work = shape.tokens * shape.top_k * shape.hidden * shape.intermediate
    if work.max() < WORK_RATIO_MIN * work.min():
        raise InputError("all points are of about the same size; measure small and large shapes.")
