"""Pictures of a plan (times, where the gain went, bits by layer, Pareto front) and of a validation."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from codesign.cost.arrays import FloatArray
from codesign.cost.waterfall import GainStep
from codesign.plan.file import GroupPlan, ParetoFront, Plan
from codesign.units import GIGA, KILO, MEGA, format_percent, format_seconds

INK, GRID = "#1d2733", "#e3e8ee"
PALETTE = ("#2563a6", "#d9822b", "#3c8d5a", "#a8456b", "#7a64b8", "#5f7a8a", "#b8a12e", "#2f9aa0")
MILLISECONDS = 1e3
ERROR_SPAN = "80 % interval"
DECADES_MAX = 8


def styled(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    """Return the figure in the house style."""
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "color": INK, "size": 13},
        margin={"l": 70, "r": 20, "t": 50, "b": 55},
        height=380,
        legend={"orientation": "h", "y": -0.25},
    )
    figure.update_xaxes(title=x, gridcolor=GRID)
    figure.update_yaxes(title=y, gridcolor=GRID)
    return figure


def gain_waterfall(steps: tuple[GainStep, ...], phase: str, baseline: str, last: str = "predicted") -> go.Figure:
    """Return how the ideal gain shrinks cause by cause to the last one, which is predicted or measured."""
    gains = [step.gain for step in steps]
    changes = [gains[0], *(after - before for before, after in pairwise(gains))]
    figure = go.Figure(
        go.Waterfall(
            x=[*(_wrapped(step.cause) for step in steps), last],
            y=[*changes, gains[-1]],
            measure=["absolute", *["relative"] * (len(steps) - 1), "total"],
            text=[f"{gain:.2f}x" for gain in [*gains, gains[-1]]],
            textposition="outside",
            cliponaxis=False,
            decreasing={"marker": {"color": PALETTE[3]}},
            increasing={"marker": {"color": PALETTE[2]}},
            totals={"marker": {"color": PALETTE[0]}},
            connector={"line": {"color": GRID}},
        )
    )
    figure.add_hline(y=1, line={"color": INK, "dash": "dot", "width": 1})
    return styled(figure, f"Where the ideal gain goes: {phase}", "", f"times the speed of {baseline}")


def _wrapped(text: str) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 14 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)


def bits_by_layer(groups: tuple[GroupPlan, ...]) -> go.Figure:
    """Return a heat map: fused group against block, coloured by bits per weight."""
    blocks = sorted({group.block_index for group in groups if group.block_index is not None})
    names = list(dict.fromkeys(group.name for group in groups if group.block_index is not None))
    cells = {(group.name, group.block_index): group for group in groups}
    chosen = [[cells.get((name, block)) for block in blocks] for name in names]
    figure = go.Figure(
        go.Heatmap(
            x=blocks,
            y=names,
            z=[[group.bits_per_weight if group else None for group in row] for row in chosen],
            customdata=[[group.scheme if group else "" for group in row] for row in chosen],
            hovertemplate="block %{x}, %{y}: %{customdata}, %{z:.2f} bits<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=16,
            colorbar={"title": "bits per<br>weight"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    return styled(figure, "Bits per weight by block and layer", "block", "")


def time_parts(plan: Plan) -> go.Figure:
    """Return the predicted times of plan and baseline with their intervals."""
    figure = go.Figure()
    names = ("first token", "per output token")
    for label, totals, colour in (
        (plan.baseline_scheme, plan.baseline, PALETTE[5]),
        ("this plan", plan.totals, PALETTE[0]),
    ):
        times = (totals.ttft_s, totals.tpot_s)
        figure.add_scatter(
            x=[time.value * MILLISECONDS for time in times],
            y=[f"{name}, {label}" for name in names],
            mode="markers",
            name=label,
            marker={"color": colour, "size": 12},
            error_x={
                "type": "data",
                "array": [(time.high - time.value) * MILLISECONDS for time in times],
                "arrayminus": [(time.value - time.low) * MILLISECONDS for time in times],
            },
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(categoryorder="category descending", automargin=True)
    return styled(figure, f"Predicted times, with {ERROR_SPAN}", "milliseconds", "")


def break_even_bars(plan: Plan) -> go.Figure:
    """Return each scheme's gain in decode and prefill, used wherever it may be."""
    names = [one.scheme for one in plan.break_even]
    figure = go.Figure()
    figure.add_bar(x=names, y=[one.decode_gain for one in plan.break_even], name="decode", marker={"color": PALETTE[0]})
    figure.add_bar(
        x=names, y=[one.prefill_gain for one in plan.break_even], name="prefill", marker={"color": PALETTE[1]}
    )
    figure.add_hline(y=1, line={"color": INK, "dash": "dot", "width": 1})
    return styled(figure, "Every scheme used everywhere", "", f"times the speed of {plan.baseline_scheme}")


def pareto_chart(front: ParetoFront, titles: dict[str, tuple[str, float]]) -> go.Figure:
    """Return the front between two criteria."""
    (first, first_scale), (second, second_scale) = titles[front.first], titles[front.second]
    figure = go.Figure(
        go.Scatter(
            x=[point.second * second_scale for point in front.points],
            y=[point.first * first_scale for point in front.points],
            mode="lines+markers",
            line={"color": PALETTE[0], "shape": "hv"},
            text=[point.mix for point in front.points],
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    )
    return styled(figure, "Plans of which none is better in both", second, first)


def parity_chart(
    name: str, measured_s: FloatArray, predicted_s: FloatArray, labels: Sequence[str], texts: Sequence[str]
) -> go.Figure:
    """Return predicted against measured seconds on logarithmic axes, one colour per label."""
    figure = go.Figure()
    of_label = np.array(labels, dtype=object)
    described = np.array(texts, dtype=object)
    for colour, label in zip(PALETTE, sorted(set(labels)), strict=False):
        rows = np.flatnonzero(of_label == label)
        figure.add_scatter(
            x=short(measured_s[rows]),
            y=short(predicted_s[rows]),
            mode="markers",
            name=label,
            marker={"color": colour, "size": 5, "opacity": 0.55},
            text=described[rows].tolist(),
            hovertemplate="%{text}<br>measured %{x}, predicted %{y}<extra></extra>",
        )
    ends = short(np.array([min(measured_s.min(), predicted_s.min()), max(measured_s.max(), predicted_s.max())]))
    line = {"color": INK, "dash": "dot", "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line=line, hoverinfo="skip")
    styled(figure, f"Predicted against measured {name}", "measured", "predicted")
    figure.update_xaxes(**logarithmic(measured_s, format_seconds))
    figure.update_yaxes(**logarithmic(predicted_s, format_seconds))
    return figure


def residual_chart(
    size_name: str, sizes: FloatArray, ratio: FloatArray, inside: npt.NDArray[np.bool_], coverage_fraction: float
) -> go.Figure:
    """Return predicted over measured against a size, with the share of all rows inside the 80 % interval."""
    figure = go.Figure()
    shares = ((True, "inside", coverage_fraction, PALETTE[0]), (False, "outside", 1 - coverage_fraction, PALETTE[1]))
    for wanted, name, share, colour in shares:
        rows = np.flatnonzero((inside == wanted) & np.isfinite(sizes) & (sizes > 0))
        figure.add_scatter(
            x=short(sizes[rows]),
            y=short(ratio[rows]),
            mode="markers",
            name=f"{name} the {ERROR_SPAN}: {format_percent(share)} of all rows",
            marker={"color": colour, "size": 5, "opacity": 0.55},
        )
    figure.add_hline(y=1, line={"color": INK, "dash": "dot", "width": 1})
    styled(figure, f"Predicted over measured, by {size_name}", size_name, "predicted / measured")
    figure.update_xaxes(**logarithmic(sizes[np.isfinite(sizes) & (sizes > 0)], _amount))
    figure.update_yaxes(**logarithmic(ratio, "{:.3g}x".format))
    return figure


def _amount(value: float) -> str:
    """Return a size for the side of a chart, such as 100, 10k or 1M."""
    for least, scale, letter in ((GIGA, GIGA, "G"), (MEGA, MEGA, "M"), (10 * KILO, KILO, "k")):
        if value >= least:
            return f"{value / scale:g}{letter}"
    return f"{value:,g}"


def logarithmic(values: FloatArray, show: Callable[[float], str]) -> dict[str, Any]:
    """Return a logarithmic axis with ticks that are written out, denser over fewer decades."""
    ends = np.log10([values.min(), values.max()])
    first, last = int(np.floor(ends[0])), int(np.ceil(ends[1]))
    decades = float(ends[1] - ends[0])
    leading = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
    every = max(1, -(-(last - first) // DECADES_MAX))
    ticks = [digit * 10.0**power for power in range(first, last + 1, every) for digit in leading]
    return {"type": "log", "tickvals": ticks, "ticktext": [show(tick) for tick in ticks], "tickangle": 0}


def short(values: FloatArray) -> list[float]:
    """Return the values with four digits, which is more than a screen shows and keeps pages small."""
    return [float(f"{value:.4g}") for value in values.tolist()]
