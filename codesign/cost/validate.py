"""Predicted against measured: errors, bias and coverage, by whatever divides the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns

if TYPE_CHECKING:
    from pandas import DataFrame

DIVISIONS = ("hw", "library", "op", "scheme", "size")
TIME_CLASSES_S = (10e-6, 100e-6, 1e-3)
WORST_ROWS = 10


@dataclass(frozen=True, slots=True)
class ErrorStatistics:
    """Errors of some rows, as fractions of the measured time; `bias_fraction` is the geometric mean ratio less 1."""

    label: str
    row_count: int
    mape_fraction: float
    median_fraction: float
    p90_fraction: float
    bias_fraction: float
    coverage_fraction: float


@dataclass(frozen=True, slots=True)
class Validation:
    """All statistics of one table; rows without prediction are counted with their reasons."""

    whole: ErrorStatistics
    divisions: dict[str, tuple[ErrorStatistics, ...]]
    origins: dict[str, int]
    unpredicted: dict[str, int]
    worst: tuple[dict[str, Any], ...]


def predict_measured(frame: "DataFrame") -> "DataFrame":
    """Return the measured table with predictions, `error_fraction` (signed) and `size` (class of measured time)."""
    result = predict_table(kernel_columns(frame))
    measured_s = frame["measured_s"].to_numpy(float)
    added = frame.assign(
        predicted_s=result.predicted_s,
        low_s=result.low_s,
        high_s=result.high_s,
        bound=result.bound,
        origin=result.origin,
        reason=result.reason,
        error_fraction=result.predicted_s / measured_s - 1,
    )
    names = np.array(["below 10 us", "10-100 us", "0.1-1 ms", "above 1 ms"])
    return added.assign(size=names[np.searchsorted(TIME_CLASSES_S, measured_s)])


def statistics(label: str, frame: "DataFrame") -> ErrorStatistics:
    """Return the error statistics of rows that have a prediction."""
    error: FloatArray = np.abs(frame["error_fraction"].to_numpy(float))
    measured_s = frame["measured_s"]
    covered = (measured_s >= frame["low_s"]) & (measured_s <= frame["high_s"])
    return ErrorStatistics(
        label=label,
        row_count=len(frame),
        mape_fraction=float(error.mean()),
        median_fraction=float(np.median(error)),
        p90_fraction=float(np.quantile(error, 0.9)),
        bias_fraction=float(np.exp(np.log(frame["predicted_s"] / measured_s).mean()) - 1),
        coverage_fraction=float(covered.mean()),
    )


def validate(frame: "DataFrame", divisions: Sequence[str] = DIVISIONS) -> Validation | None:
    """Return the statistics of a measured table, None if no row could be predicted."""
    predicted = predict_measured(frame)
    usable = predicted[predicted["reason"] == ""]
    if usable.empty:
        return None
    present = [name for name in divisions if name in usable.columns and usable[name].nunique() > 1]
    order = usable["error_fraction"].abs().sort_values(ascending=False).index[:WORST_ROWS]
    return Validation(
        whole=statistics("all rows", usable),
        divisions={
            name: tuple(statistics(str(label), part) for label, part in usable.groupby(name, sort=True))
            for name in present
        },
        origins={str(name): int(count) for name, count in usable["origin"].value_counts().items()},
        unpredicted={
            str(name): int(count)
            for name, count in predicted.loc[predicted["reason"] != "", "reason"].value_counts().items()
        },
        worst=tuple(
            {str(key): _plain(value) for key, value in row.items()} for row in usable.loc[order].to_dict("records")
        ),
    )


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
