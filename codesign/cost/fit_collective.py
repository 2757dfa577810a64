"""Fit the constants of codesign/cost/collective_time.py to measured collectives, with an honest interval."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.collective_time import collective_seconds
from codesign.cost.fit_constants import (
    SECONDS_MAX,
    SECONDS_MIN,
    Bounds,
    Mask,
    calibration,
    fit_constants,
    held_out_ratios,
    shape_index,
)
from codesign.cost.sheet import Calibration
from codesign.errors import InputError

POINTS_MIN = 12
GPUS_MAX, MESSAGE_MAX_BYTES = 1e5, 2.0**40
GAIN_MIN = 0.05
START_COUNT = 4

RING_BOUNDS: Mapping[str, Bounds] = {
    "fixed_s": Bounds(2e-7, 1e-3, 1e-5),
    "hop_s": Bounds(1e-9, 1e-4, 1e-6),
    "bandwidth_fraction": Bounds(0.05, 1.0, 0.8, 0.2),
    "bandwidth_growth": Bounds(1e-3, 1.0, 0.1),
    "ramp_s": Bounds(1e-7, 1e-3, 3e-5),
    "ramp_half_s": Bounds(1e-7, 1e-3, 1e-5),
}
DIRECT_BOUNDS: Mapping[str, Bounds] = {
    **RING_BOUNDS,
    "direct_fixed_s": Bounds(2e-7, 1e-3, 5e-6),
    "direct_hop_s": Bounds(1e-9, 1e-4, 1e-7),
    "direct_bandwidth_fraction": Bounds(0.01, 1.5, 0.5),
}


@dataclass(frozen=True, slots=True)
class CollectiveRows:
    """Measured calls of one collective on one machine with one library."""

    gpus: FloatArray
    message_bytes: FloatArray
    seconds: FloatArray

    def take(self, rows: Mask) -> "CollectiveRows":
        """Return the rows chosen."""
        return CollectiveRows(self.gpus[rows], self.message_bytes[rows], self.seconds[rows])


def fit_collective(rows: CollectiveRows, operation: str, link_bytes_per_s: float) -> Calibration:
    """Return the calibration of a collective; the same rows in any order give the same constants.

    InputError if there are fewer than 12 points or if a number is absurd.
    """
    rows = _checked(rows)
    costs = [_fit(rows, operation, link_bytes_per_s, bounds)[1] for bounds in (RING_BOUNDS, DIRECT_BOUNDS)]
    bounds = DIRECT_BOUNDS if costs[1] * (1.0 + GAIN_MIN) < costs[0] else RING_BOUNDS
    ratios = held_out_ratios(
        shape_index(rows.message_bytes, np.zeros_like(rows.gpus)),
        rows.seconds,
        lambda mask: _fit(rows.take(mask), operation, link_bytes_per_s, bounds)[0],
        lambda constants, mask: (
            collective_seconds(
                constants, operation, link_bytes_per_s, rows.gpus[mask], rows.message_bytes[mask]
            ).predicted_s
        ),
    )
    constants = _fit(rows, operation, link_bytes_per_s, bounds)[0]
    return calibration(constants, ratios, {"gpus": rows.gpus, "message_bytes": rows.message_bytes})


def _fit(
    rows: CollectiveRows, operation: str, link_bytes_per_s: float, bounds: Mapping[str, Bounds]
) -> tuple[dict[str, float], float]:
    return fit_constants(
        bounds,
        lambda c: collective_seconds(c, operation, link_bytes_per_s, rows.gpus, rows.message_bytes).predicted_s,
        rows.seconds,
        START_COUNT,
    )


def _checked(rows: CollectiveRows) -> CollectiveRows:
    """Return the rows as float arrays in a fixed order; InputError names what is too little or out of range."""
    columns = [as_floats(column) for column in (rows.gpus, rows.message_bytes, rows.seconds)]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
        raise InputError("gpus, message_bytes and seconds differ in length; give one of each per measured call.")
    if len(columns[0]) < POINTS_MIN:
        raise InputError(f"{len(columns[0])} points are too few to fit a collective; measure at least {POINTS_MIN}.")
    ends = (("gpus", 2.0, GPUS_MAX), ("message_bytes", 1.0, MESSAGE_MAX_BYTES), ("seconds", SECONDS_MIN, SECONDS_MAX))
    for (name, low, high), column in zip(ends, columns, strict=True):
        if not np.all((column >= low) & (column <= high)):
            raise InputError(f"{name}: a value is not within {low:g} to {high:g}; check the column.")
    order = np.lexsort(columns[::-1])
    return CollectiveRows(*(column[order] for column in columns))
