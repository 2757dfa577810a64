"""Predicted against measured: errors, bias and coverage, by whatever divides the rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.measured import SERVER_FIGURES, MeasuredTable, Rejection
from codesign.cost.sheet import KernelSheet
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns, predict_servers
from codesign.cost.traffic import (
    ACTIVATION_BYTES,
    attended_pairs,
    attention_flop,
    expected_experts_hit,
    gemm_activation_bytes,
    gemm_flop,
)
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import bytes_per_token, parse_kv
from codesign.schemes.storage import weight_bytes

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# Column of the division -> its name for people.
DIVISIONS = {
    "hw": "machine",
    "library": "library",
    "scheme": "scheme",
    "kv_dtype": "KV format",
    "op": "operation",
    "model": "model",
    "gpus": "devices",
    "size_class": "measured time",
    "row_class": "rows (m)",
    "flight_class": "requests in flight",
    "prompt_class": "prompt tokens",
}
FIGURE_NAMES = {"kernel_s": "kernel time", "tpot_s": "time per output token", "ttft_s": "time to first token"}
# Upper ends of classes with their names; the last class has none.
TIME_CLASSES = (
    ((10e-6, 100e-6, 1e-3, 10e-3, 0.1, 1.0)),
    ("below 10 us", "10-100 us", "0.1-1 ms", "1-10 ms", "10-100 ms", "0.1-1 s", "above 1 s"),
)
ROW_CLASSES = ((1.0, 16.0, 128.0, 1024.0), ("1", "2-16", "17-128", "129-1,024", "above 1,024"))
FLIGHT_CLASSES = ((1.0, 8.0, 32.0, 128.0), ("1", "2-8", "9-32", "33-128", "above 128"))
PROMPT_CLASSES = ((512.0, 2048.0, 8192.0), ("up to 512", "513-2,048", "2,049-8,192", "above 8,192"))
WORST_ROWS = 10
LABELS_MAX = 40


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
    """Statistics of one measured figure, such as the kernel time; `whole` is None where no row could be predicted.

    `unpredicted` counts rows by the reason for which they have no prediction.
    """

    figure: str
    whole: ErrorStatistics | None
    divisions: dict[str, tuple[ErrorStatistics, ...]]
    origins: dict[str, int]
    unpredicted: dict[str, int]
    worst: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class TableValidation:
    """What a measured table says: `row_count` rows in the file, those rejected, and each figure's statistics."""

    kind: str
    row_count: int
    rejected_count: int
    rejections: tuple[Rejection, ...]
    figures: tuple[Validation, ...]


def validate_table(table: MeasuredTable, predicted: Mapping[str, "DataFrame"]) -> TableValidation:
    """Return the statistics of a measured table from what `predict_figures` returns."""
    return TableValidation(
        kind=table.kind,
        row_count=table.row_count,
        rejected_count=sum(len(one.lines) for one in table.rejections),
        rejections=table.rejections,
        figures=tuple(validate(figure, frame) for figure, frame in predicted.items()),
    )


def predict_figures(table: MeasuredTable, sheets: tuple[KernelSheet, ...] = ()) -> dict[str, "DataFrame"]:
    """Return per measured figure the rows with predictions, `error_fraction` (signed) and classes; none of no row."""
    if table.frame.empty:
        return {}
    if table.kind == "kernels":
        return {"kernel_s": predict_measured(table.frame, sheets)}
    return predict_runs(table.frame, sheets)


def predict_measured(frame: "DataFrame", sheets: tuple[KernelSheet, ...] = ()) -> "DataFrame":
    """Return measured kernels with predictions, `error_fraction` (signed) and classes of time and rows."""
    result = predict_table(kernel_columns(frame), sheets)
    added = _with_error(
        frame.assign(
            predicted_s=result.predicted_s,
            low_s=result.low_s,
            high_s=result.high_s,
            bound=result.bound,
            origin=result.origin,
            reason=result.reason,
        )
    )
    return added.assign(row_class=classes(kernel_rows(frame), ROW_CLASSES))


def predict_runs(frame: "DataFrame", sheets: tuple[KernelSheet, ...] = ()) -> dict[str, "DataFrame"]:
    """Return per measured figure the runs of servers with predictions, errors and classes."""
    served = predict_servers(frame, sheets)
    figures = {}
    for figure in SERVER_FIGURES:
        rows = served[served[f"measured_{figure}"].notna()].reset_index(drop=True)
        if rows.empty:
            continue
        ends = {"predicted_s": rows[figure], "low_s": rows[f"{figure}_low"], "high_s": rows[f"{figure}_high"]}
        figures[figure] = _with_error(rows.assign(measured_s=rows[f"measured_{figure}"], **ends)).assign(
            flight_class=classes(rows["concurrency"].to_numpy(float), FLIGHT_CLASSES),
            prompt_class=classes(rows["prompt_tokens"].to_numpy(float), PROMPT_CLASSES),
        )
    return figures


def _with_error(frame: "DataFrame") -> "DataFrame":
    measured_s = frame["measured_s"].to_numpy(float)
    return frame.assign(
        error_fraction=frame["predicted_s"].to_numpy(float) / measured_s - 1,
        size_class=classes(measured_s, TIME_CLASSES),
    )


def classes(values: FloatArray, ends_and_names: tuple[tuple[float, ...], tuple[str, ...]]) -> Any:
    """Return the class of each value as an ordered category; NaN has none."""
    import pandas

    ends, names = ends_and_names
    codes = np.where(np.isnan(values), -1, np.searchsorted(ends, values))
    return pandas.Categorical.from_codes(codes, categories=names, ordered=True)


def kernel_rows(frame: "DataFrame") -> FloatArray:
    """Return the rows of activations that each kernel multiplies, NaN for communication."""
    numbers = kernel_columns(frame)
    nothing = np.full(len(frame), np.nan)
    queries = numbers.get("batch", nothing) * numbers.get("q_tokens", nothing)
    op = np.char.lower(numbers["op"].astype(str))
    rows = np.where(
        op == "gemm", numbers.get("m", nothing), np.where(op == "moe", numbers.get("tokens", nothing), nothing)
    )
    return np.where(np.char.startswith(op, "attention"), queries, rows)


def intensity_flop_per_byte(frame: "DataFrame") -> FloatArray:
    """Return flop per byte of device memory of kernels that can be predicted, NaN for communication.

    Weights (or the KV cache) are read once, activations read and written once; what kernels convert is not counted.
    """
    numbers = kernel_columns(frame)
    op = np.char.lower(numbers["op"].astype(str))
    intensity = np.full(len(frame), np.nan)
    keys = np.where(np.char.startswith(op, "attention"), numbers["kv_dtype"].astype(str), numbers["scheme"].astype(str))
    for kind in sorted(set(zip(op.tolist(), keys.tolist(), strict=True))):
        rows = np.flatnonzero((op == kind[0]) & (keys == kind[1]))
        x = {name: values[rows] for name, values in numbers.items() if values.dtype.kind == "f"}
        if kind[0] in INTENSITIES:
            intensity[rows] = INTENSITIES[kind[0]](kind[1], x)
    return intensity


def _gemm_intensity(name: str, x: Mapping[str, FloatArray]) -> FloatArray:
    scheme = parse_scheme(name)
    weights = as_floats(weight_bytes(scheme, x["n"].astype(np.int64), x["k"].astype(np.int64)))
    return gemm_flop(x["m"], x["n"], x["k"]) / (
        weights + gemm_activation_bytes(x["m"], x["n"], x["k"], scheme.activations.bits)
    )


def _attention_intensity(name: str, x: Mapping[str, FloatArray]) -> FloatArray:
    elements = 2.0 * x["kv_heads"] * x["head_dim"]
    token_bytes = as_floats(bytes_per_token(parse_kv(name), elements.astype(np.int64), x["head_dim"].astype(np.int64)))
    pairs = attended_pairs(x["q_tokens"], x["kv_tokens"])
    queries_bytes = 2.0 * x["q_tokens"] * x["heads"] * x["head_dim"] * ACTIVATION_BYTES
    flop = attention_flop(pairs, x["heads"], x["head_dim"], x["head_dim"])
    return flop / (x["kv_tokens"] * token_bytes + queries_bytes)


def _moe_intensity(name: str, x: Mapping[str, FloatArray]) -> FloatArray:
    """Return that of one expert's matrix with the mean number of rows that its tokens bring."""
    hit = expected_experts_hit(x["tokens"], x["experts"], x["top_k"])
    split = np.nan_to_num(x["tp"], nan=1.0) if "tp" in x else 1.0
    return _gemm_intensity(
        name, {"m": x["tokens"] * x["top_k"] / hit, "n": np.ceil(x["intermediate"] / split), "k": x["hidden"]}
    )


INTENSITIES: Mapping[str, Callable[[str, Mapping[str, FloatArray]], FloatArray]] = {
    "gemm": _gemm_intensity,
    "attention_decode": _attention_intensity,
    "attention_prefill": _attention_intensity,
    "moe": _moe_intensity,
}


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


def validate(figure: str, predicted: "DataFrame") -> Validation:
    """Return the statistics of rows with predictions; those without one are counted with their reasons."""
    usable = predicted[predicted["reason"] == ""]
    reasons = predicted.loc[predicted["reason"] != "", "reason"].value_counts()
    ratio = np.log(usable["predicted_s"] / usable["measured_s"]).abs()
    order = ratio.sort_values(ascending=False, kind="stable").index[:WORST_ROWS]
    return Validation(
        figure=figure,
        whole=None if usable.empty else statistics("all rows", usable),
        divisions={name: parts for name in DIVISIONS if len(parts := _division(usable, name)) > 1},
        origins={str(name): int(count) for name, count in usable["origin"].value_counts().items()},
        unpredicted={str(name): int(count) for name, count in reasons.items()},
        worst=tuple(
            {str(key): _plain(value) for key, value in row.items()} for row in usable.loc[order].to_dict("records")
        ),
    )


def _division(usable: "DataFrame", name: str) -> tuple[ErrorStatistics, ...]:
    """Return the statistics per value of a column; values beyond the most frequent ones are pooled."""
    if name not in usable.columns:
        return ()
    labels = _labels(usable[name])
    frequent = labels.value_counts().index[:LABELS_MAX]
    parts = [
        statistics(f"{label:g}" if isinstance(label, float) else str(label), part)
        for label, part in usable.groupby(labels.where(labels.isin(frequent)), sort=True, observed=True)
    ]
    others = usable[labels.notna() & ~labels.isin(frequent)]
    return (*parts, statistics("all others", others)) if len(others) else tuple(parts)


def _labels(column: "Series") -> "Series":
    """Return the values that divide rows: classes and numbers keep their order, texts are never empty."""
    from pandas.api.types import is_string_dtype

    if not is_string_dtype(column.dtype):
        return column
    texts = column.astype(str)
    return texts.where(texts != "", "not given")


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
