"""Pictures of a run: roofline with measured points, speed-ups by rows, share of the roof by kernel."""

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from codesign.hardware.hardware import Hardware
from codesign.report.charts import INK, PALETTE, logarithmic, short, styled
from codesign.report.run_gains import Gain, break_even
from codesign.units import GIGA, significant

if TYPE_CHECKING:
    from pandas import DataFrame

CEILING_DTYPES = ("fp32", "bf16", "fp16", "fp8", "int8")
FULL_CLOCK = 0.995


def roofline_chart(frame: "DataFrame", hardware: Hardware) -> go.Figure:
    """Return achieved rate against intensity, with the memory's slope and a ceiling for each math dtype.

    Dashed lines are what the machine sustains by its profile, solid ones the peaks, dotted ones the peaks at the mean
    clock that was seen, where a GPU ran slower than its highest.
    """
    figure = go.Figure()
    intensity = (frame["flop"] / frame["read_bytes"]).to_numpy(float)
    ends = np.array([intensity.min() / 2, intensity.max() * 2])
    for i, (label, rows) in enumerate(frame.groupby("scheme", sort=True)):
        figure.add_scatter(
            x=short((rows["flop"] / rows["read_bytes"]).to_numpy(float)),
            y=short((rows["flop"] / rows["measured_s"] / GIGA).to_numpy(float)),
            mode="markers",
            name=html.escape(str(label)),
            marker={"color": PALETTE[i % len(PALETTE)], "size": 6, "opacity": 0.7, "symbol": i // len(PALETTE)},
            text=[_described(one) for one in rows.to_dict("records")],
            hovertemplate="%{text}<br>%{x} flop/byte, %{y} Gflop/s<extra></extra>",
        )  # fmt: skip
    for dtype in (name for name in CEILING_DTYPES if name in hardware.peak_flop_per_s):
        for rate, bandwidth, dash in _roofs(frame, hardware, dtype):
            at = np.array(sorted({ends[0], min(max(rate / bandwidth, ends[0]), ends[1]), ends[1]}))
            roof = np.minimum(at * bandwidth, rate) / GIGA
            figure.add_scatter(x=short(at), y=short(roof), mode="lines", name=f"{dtype} roof", hoverinfo="skip",
                               showlegend=False, line={"color": INK, "width": 1, "dash": dash})  # fmt: skip
        figure.add_annotation(x=float(np.log10(ends[1])), y=float(np.log10(hardware.peak_flop_per_s[dtype] / GIGA)),
                              text=dtype, showarrow=False, xanchor="right", yanchor="bottom")  # fmt: skip
    styled(figure, "Roofline: achieved rates under the machine's roofs", "flop per byte that must be read", "Gflop/s")
    figure.update_xaxes(**logarithmic(intensity, significant))
    figure.update_yaxes(**logarithmic((frame["flop"] / frame["measured_s"] / GIGA).to_numpy(float), significant))
    figure.update_layout(height=460)
    return figure


def _roofs(frame: "DataFrame", hardware: Hardware, dtype: str) -> list[tuple[float, float, str]]:
    """Return rate, bandwidth and dash of each roof of a math dtype."""
    peak, memory = hardware.peak_flop_per_s[dtype], hardware.memory
    roofs = [
        (peak, memory.bandwidth_bytes_per_s, "solid"),
        (hardware.sustained_flop_per_s(dtype), memory.sustained_bytes_per_s, "dash"),
    ]
    clock = float(frame["clock_fraction"].astype(float).mean()) if "clock_fraction" in frame else 1.0
    if clock < FULL_CLOCK:  # unknown ones make no number, which is not less
        roofs.append((peak * clock, memory.bandwidth_bytes_per_s, "dot"))
    return roofs


def _described(one: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {one[name]:g}" for name in ("m", "n", "k", "threads"))
    return html.escape(f"{one['library']} {one['kernel']}: {sizes}")


def gain_curves(gains: tuple[Gain, ...], threads: int, baseline: str) -> go.Figure:
    """Return the measured gain of every scheme by rows, the predicted one dashed, and where a gain ends."""
    figure = go.Figure()
    schemes = sorted({gain.scheme for gain in gains if gain.threads == threads})
    for i, scheme in enumerate(schemes):
        curve = [gain for gain in gains if (gain.scheme, gain.threads) == (scheme, threads)]
        colour = PALETTE[i % len(PALETTE)]
        rows = [gain.m for gain in curve]
        figure.add_scatter(x=rows, y=[gain.measured for gain in curve], mode="lines+markers", name=html.escape(scheme),
                           line={"color": colour})  # fmt: skip
        figure.add_scatter(x=rows, y=[gain.predicted for gain in curve], mode="lines", showlegend=False,
                           line={"color": colour, "dash": "dot"}, hoverinfo="skip")  # fmt: skip
        end = break_even(curve)
        if end is not None:
            told = f"{html.escape(scheme)} stops paying at %{{x:.0f}} rows<extra></extra>"
            figure.add_scatter(x=[end], y=[1.0], mode="markers", showlegend=False, hovertemplate=told,
                               marker={"color": colour, "symbol": "x", "size": 10})  # fmt: skip
    figure.add_hline(y=1, line={"color": INK, "dash": "dot", "width": 1})
    title = f"Speed against {baseline}, {threads} thread{'s' if threads > 1 else ''}; dotted: predicted"
    styled(figure, title, "rows of activations (m)", f"times the speed of {baseline}")
    every = np.array([gain.m for gain in gains], dtype=float)
    figure.update_xaxes(**logarithmic(every, significant))
    figure.update_yaxes(**logarithmic(np.array([gain.measured for gain in gains] + [1.0]), "{:.3g}x".format))
    return figure


def roof_shares(frame: "DataFrame", threads: int) -> go.Figure:
    """Return a heat map: median share of the roof by kernel and rows of activations."""
    chosen = frame[frame["threads"] == threads]
    named = chosen.assign(of=chosen["scheme"] + ", " + chosen["library"] + " " + chosen["kernel"])
    shares = named.pivot_table(index="of", columns="m", values="roof_fraction", aggfunc="median", observed=True)
    figure = go.Figure(
        go.Heatmap(
            x=[f"{m:g}" for m in shares.columns],
            y=[html.escape(name) for name in shares.index],
            z=[[None if np.isnan(value) else round(100 * value) for value in row] for row in shares.to_numpy()],
            texttemplate="%{z}",
            colorscale="Blues",
            zmin=0,
            zmax=100,
            colorbar={"title": "% of<br>the roof"},
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    title = f"Share of the roof, {threads} thread{'s' if threads > 1 else ''}: median over layer shapes"
    styled(figure, title, "rows of activations (m)", "")
    figure.update_layout(height=max(380, 130 + 22 * len(shares)))
    return figure
