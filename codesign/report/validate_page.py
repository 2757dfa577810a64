"""The page of a validation: verdict, parity and residuals, tables, worst rows. Made from the table alone."""

import html
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign import __version__
from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.validate import FIGURE_NAMES, TableValidation, Validation, intensity_flop_per_byte, kernel_rows
from codesign.report.charts import PALETTE, parity_chart, residual_chart
from codesign.report.page import figure_html, write_page
from codesign.report.validate_tables import counts, described, figure_tables, figure_verdict, rejected_rows

if TYPE_CHECKING:
    from pandas import DataFrame

POINTS_MAX = 5_000
SERIES_COLUMNS = ("op", "model", "scheme", "kv_dtype", "library", "hw")
LABEL_LENGTH_MAX = 60
FOOTER = (
    "Errors are shares of the measured time; bias is the geometric mean of predicted over measured, less 1: negative "
    "is too short. Origins: calibrated on measured kernels of this machine and library; transferred from a relative or "
    "another library; datasheet: rates of the profile."
)


def write_validation_page(
    found: TableValidation, predicted: Mapping[str, "DataFrame"], input_name: str, path: Path
) -> None:
    """Write the page of a validation as one offline file; the same table gives the same bytes."""
    command = shlex.join(["codesign", "validate", "--input", input_name, "--html", path.name, "--force"])
    write_page(
        "validate.html",
        path,
        title=f"Predicted against measured: {input_name}",
        verdicts=[figure_verdict(figure) for figure in found.figures] or ["No row could be used."],
        counts=counts(found),
        figures=[figure_part(figure, predicted[figure.figure]) for figure in found.figures],
        rejected=rejected_rows(found),
        rerun=command,
        footer=f"codesign {__version__}. {FOOTER}",
    )


def figure_part(figure: Validation, predicted: "DataFrame") -> dict[str, Any]:
    """Return title, note, charts and tables of one figure."""
    usable = predicted[predicted["reason"] == ""].reset_index(drop=True)
    points = thinned(usable)
    return {
        "title": FIGURE_NAMES[figure.figure].capitalize(),
        "note": thinning_note(len(points), len(usable)),
        "charts": charts(figure, points),
        "tables": figure_tables(figure),
    }


def thinned(usable: "DataFrame") -> "DataFrame":
    """Return at most POINTS_MAX rows in their order, drawn with a fixed seed: equal steps would miss periodic sizes."""
    if len(usable) <= POINTS_MAX:
        return usable
    chosen = np.random.default_rng(0).choice(len(usable), POINTS_MAX, replace=False)
    return usable.iloc[np.sort(chosen)].reset_index(drop=True)


def thinning_note(shown: int, count: int) -> str:
    """Return what the charts leave out, empty where nothing."""
    if shown == count:
        return ""
    return f"Thinned: the charts show {shown:,} of {count:,} rows, drawn at random; the tables count all of them."


def charts(figure: Validation, points: "DataFrame") -> list[str]:
    """Return parity and residuals as HTML; none without points."""
    if points.empty or figure.whole is None:
        return []
    texts = [
        html.escape(f"line {row['line']}: {described(row)}"[: 4 * LABEL_LENGTH_MAX])
        for row in points.to_dict("records")
    ]
    parity = parity_chart(
        FIGURE_NAMES[figure.figure],
        as_floats(points["measured_s"]),
        as_floats(points["predicted_s"]),
        series_labels(points),
        texts,
    )
    ratio = as_floats(points["predicted_s"] / points["measured_s"])
    inside = ((points["measured_s"] >= points["low_s"]) & (points["measured_s"] <= points["high_s"])).to_numpy(bool)
    residuals = [
        residual_chart(name, values, ratio, inside, figure.whole.coverage_fraction)
        for name, values in residual_axes(points).items()
        if np.isfinite(values).any()
    ]
    return [figure_html(one, f"{figure.figure}-{i}") for i, one in enumerate([parity, *residuals])]


def series_labels(points: "DataFrame") -> list[str]:
    """Return what the parity plot is coloured by: the first column that divides the rows."""
    for name in SERIES_COLUMNS:
        if name in points.columns and points[name].nunique() > 1:
            column = points[name].astype(str)
            frequent = column.value_counts().index[: len(PALETTE) - 1]
            kept = column.where(column.isin(frequent), "others")
            return [html.escape(label[:LABEL_LENGTH_MAX]) or "not given" for label in kept]
    return ["all rows"] * len(points)


def residual_axes(points: "DataFrame") -> dict[str, FloatArray]:
    """Return the sizes over which residuals are drawn, by the title of their axis."""
    if "concurrency" in points.columns and "prompt_tokens" in points.columns:
        return {
            "requests in flight": as_floats(points["concurrency"]),
            "prompt tokens": as_floats(points["prompt_tokens"]),
        }
    sizes = {"rows of activations (m)": kernel_rows(points), "flop per byte": intensity_flop_per_byte(points)}
    others = {"cached tokens": "kv_tokens", "bytes of the message": "message_bytes"}
    return sizes | {title: as_floats(points[name]) for title, name in others.items() if name in points.columns}
