"""The page of simulated load: latency, goodput and memory against the rate of requests, and memory over time."""

from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from codesign import __version__
from codesign.capacity.load import Load
from codesign.capacity.load_curve import LoadCurve
from codesign.capacity.present import curve_table, percentile_table, question_title, summary_lines
from codesign.capacity.question import Question
from codesign.codec import to_plain
from codesign.cost.prediction import Prediction
from codesign.files import to_json
from codesign.report.charts import PALETTE, styled
from codesign.report.page import figure_html, write_page
from codesign.units import MILLI

PERCENT = 100.0
LATENCIES = (("ttft_s", "First token", "seconds", 1.0), ("tpot_s", "Each further token", "milliseconds", 1 / MILLI))


def write_load_page(question: Question, curve: LoadCurve, path: Path) -> None:
    """Write the page as one offline file; the same answer gives the same bytes."""
    many = len(curve.loads) > 1
    figures = load_figures(question, curve) if many else {}
    figures["memory"] = memory_over_time(curve.loads[_shown(curve)])
    verdict, *lines = summary_lines(question, curve)
    busiest = curve.loads[_shown(curve)]
    tables = [(f"At {busiest.rate_per_s:.3g} requests/s", percentile_table(busiest))]
    write_page(
        "capacity.html",
        path,
        title=question_title(question),
        verdict=verdict,
        figures=[figure_html(figure, name) for name, figure in figures.items()],
        tables=[("By rate", curve_table(curve)), *tables] if many else tables,
        lines=lines,
        raw=to_json(to_plain({**question.described(), "curve": curve})),
        footer=f"codesign {__version__}. Bands and brackets: every step at the ends of its 80 % interval.",
    )


def _shown(curve: LoadCurve) -> int:
    """Return the load that is shown in detail: the last within objectives, else the knee."""
    return curve.knee_index if curve.best_index is None else curve.best_index


def load_figures(question: Question, curve: LoadCurve) -> dict[str, go.Figure]:
    """Return the pictures against the rate."""
    figures = {
        name: latency_chart(curve, name, title, unit, scale, question.asked.objectives.named.get(name))
        for name, title, unit, scale in LATENCIES
    }
    figures["goodput"] = _against_rate(
        curve, "Served, and within objectives", "per second",
        (("requests served", lambda one: one.served_per_s),
         ("within objectives", lambda one: one.goodput_per_s)),
    )  # fmt: skip
    figures["shares"] = _against_rate(
        curve, "How full a replica is", "percent",
        (("time with a step running", lambda one: one.busy_share.scaled(PERCENT)),
         ("cache, at its peak", lambda one: one.kv_peak_share.scaled(PERCENT))),
    )  # fmt: skip
    return figures


def latency_chart(curve: LoadCurve, name: str, title: str, unit: str, scale: float, limit_s: float | None) -> go.Figure:
    """Return median and 95th percentile with its interval against the rate, the knee and the objective marked."""
    rates = [one.rate_per_s for one in curve.loads]
    p95 = [one.p95(name).scaled(scale) for one in curve.loads]
    figure = go.Figure()
    _band(figure, rates, p95, PALETTE[0])
    median = [one.percentiles[name][50].value * scale for one in curve.loads]
    figure.add_scatter(x=rates, y=median, name="median", mode="lines", line={"color": PALETTE[5], "dash": "dot"})
    figure.add_scatter(
        x=rates, y=[one.value for one in p95], name="95 %", mode="lines+markers", line={"color": PALETTE[0]}
    )
    if limit_s is not None:
        ends = [rates[0], rates[-1]]
        line = {"color": PALETTE[3], "dash": "dash"}
        figure.add_scatter(x=ends, y=[limit_s * scale] * 2, name="objective", mode="lines", line=line)
    if len(rates) > 2:
        figure.add_vline(x=rates[curve.knee_index], line={"color": PALETTE[1], "dash": "dot"}, annotation_text="knee")
    figure.update_yaxes(type="log")
    return styled(figure, title, "requests per second", unit)


def _band(figure: go.Figure, x: Sequence[float], values: Sequence[Prediction], colour: str) -> None:
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*(one.high for one in values), *(one.low for one in reversed(values))],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=colour,
        opacity=0.15,
        name="80 % interval",
        hoverinfo="skip",
    )


def _against_rate(
    curve: LoadCurve, title: str, unit: str, lines: Sequence[tuple[str, Callable[[Load], Prediction]]]
) -> go.Figure:
    rates = [one.rate_per_s for one in curve.loads]
    figure = go.Figure()
    for colour, (name, of) in zip(PALETTE, lines, strict=False):
        values = [of(one).value for one in curve.loads]
        figure.add_scatter(x=rates, y=values, name=name, mode="lines+markers", line={"color": colour})
    figure.update_yaxes(rangemode="tozero")
    return styled(figure, title, "requests per second", unit)


def memory_over_time(load: Load) -> go.Figure:
    """Return how full the cache is while requests arrive."""
    shares = [share * PERCENT for share in load.kv_share_over_time]
    seconds = load.request_count / max(load.rate_per_s, 1e-12)
    times = [seconds * (number + 0.5) / max(len(shares), 1) for number in range(len(shares))]
    figure = go.Figure(go.Scatter(x=times, y=shares, mode="lines", fill="tozeroy", line={"color": PALETTE[4]}))
    figure.update_yaxes(range=[0, 105])
    return styled(figure, f"Cache in use at {load.rate_per_s:.3g} requests/s", "seconds", "percent of the blocks")
