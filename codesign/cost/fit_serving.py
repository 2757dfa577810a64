"""Fit the constants of codesign/cost/serving_time.py to measured runs of servers, with an honest interval.

The kernels' times are predicted, not fitted: what is left to the scheduler is how requests interrupt each other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.fit_constants import (
    SECONDS_MAX,
    SECONDS_MIN,
    Bounds,
    Constants,
    Mask,
    calibration,
    fit_constants,
    held_out_ratios,
)
from codesign.cost.serving_time import tpot_seconds, ttft_seconds
from codesign.cost.sheet import Calibration
from codesign.errors import InputError

POINTS_MIN = 8
START_COUNT = 3
TPOT_BOUNDS: Mapping[str, Bounds] = {"interruption_share": Bounds(1e-3, 2.0, 0.9)}
TTFT_BOUNDS: Mapping[str, Bounds] = {
    "host_request_s": Bounds(1e-4, 0.5, 0.02),
    "prompts_waited": Bounds(1e-2, 20.0, 1.5),
    "wave_share": Bounds(1e-3, 1.2, 0.15),
}


@dataclass(frozen=True, slots=True)
class ServingRows:
    """Measured runs of one library's server; `prefill_s` of one prompt and `decode_s` of a step are predicted.

    `kind` numbers what is held out together, such as runs of one model and prompt length.
    """

    prefill_s: FloatArray
    decode_s: FloatArray
    in_flight: FloatArray
    output_tokens: FloatArray
    seconds: FloatArray
    kind: npt.NDArray[np.intp]

    def take(self, rows: Mask) -> "ServingRows":
        """Return the rows chosen."""
        return ServingRows(*(getattr(self, field.name)[rows] for field in fields(self)))


def fit_serving_tpot(rows: ServingRows) -> Calibration:
    """Return the calibration of the time per output token; InputError if there are too few runs or absurd numbers."""
    return _calibrated(
        rows, TPOT_BOUNDS, lambda c, r: tpot_seconds(c, r.decode_s, r.prefill_s, r.in_flight, r.output_tokens)
    )


def fit_serving_ttft(rows: ServingRows) -> Calibration:
    """Return the calibration of the time to the first token; InputError as for the time per output token."""
    return _calibrated(rows, TTFT_BOUNDS, lambda c, r: ttft_seconds(c, r.prefill_s, r.in_flight))


def _calibrated(
    rows: ServingRows, bounds: Mapping[str, Bounds], predicted_s: Callable[[Constants, ServingRows], FloatArray]
) -> Calibration:
    _check(rows)

    def fit(part: ServingRows) -> dict[str, float]:
        return fit_constants(bounds, lambda c: predicted_s(c, part), part.seconds, START_COUNT)[0]

    ratios = held_out_ratios(
        rows.kind, rows.seconds, lambda mask: fit(rows.take(mask)), lambda c, mask: predicted_s(c, rows.take(mask))
    )
    sizes = {"in_flight": rows.in_flight, "output_tokens": rows.output_tokens}
    return calibration(fit(rows), ratios, sizes)


def _check(rows: ServingRows) -> None:
    columns = [as_floats(getattr(rows, field.name)) for field in fields(rows)]
    if len({column.shape for column in columns}) > 1:
        raise InputError("the columns differ in length; give one of each per measured run.")
    if len(rows.seconds) < POINTS_MIN:
        raise InputError(f"{len(rows.seconds)} runs are too few to fit a server; measure at least {POINTS_MIN}.")
    for name in ("prefill_s", "decode_s", "seconds"):
        column = getattr(rows, name)
        if not np.all((column >= SECONDS_MIN) & (column <= SECONDS_MAX)):
            raise InputError(f"{name}: a value is not within {SECONDS_MIN:g} to {SECONDS_MAX:g}; check the unit.")
    if not np.all((rows.in_flight >= 1) & (rows.output_tokens >= 1)):
        raise InputError("in_flight and output_tokens must be at least 1.")
