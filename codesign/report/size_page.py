"""The page of a sizing: cost against latency over all machines, the best of each, what fails and what is next."""

from collections import defaultdict
from pathlib import Path

import plotly.graph_objects as go

from codesign import __version__
from codesign.capacity.candidates import Candidate, Service
from codesign.capacity.size import Sizing
from codesign.capacity.size_present import (
    detail_lines,
    machine_words,
    machines_table,
    service_title,
    sizing_plain,
    verdict,
)
from codesign.codec import to_plain
from codesign.files import to_json
from codesign.report.charts import PALETTE, styled
from codesign.report.page import figure_html, write_page
from codesign.units import MILLI


def write_size_page(service: Service, found: Sizing, path: Path) -> None:
    """Write the page as one offline file; the same answer gives the same bytes."""
    figures = {"pareto": cost_against_latency(service, found), "machines": cost_by_machine(found)}
    write_page(
        "capacity.html",
        path,
        title=service_title(service),
        verdict=verdict(found),
        figures=[figure_html(figure, name) for name, figure in figures.items()],
        tables=[("The best of each machine, then the next on the best one", machines_table(found))],
        lines=detail_lines(service, found),
        raw=to_json(to_plain(sizing_plain(service, found))),
        footer=f"codesign {__version__}. Prices are those of the hardware profiles unless given.",
    )


def cost_against_latency(service: Service, found: Sizing) -> go.Figure:
    """Return what every combination costs at least against its time per token, and the simulated ones."""
    rate = service.typical.rate_per_s
    by_machine: dict[str, list[Candidate]] = defaultdict(list)
    for one in found.candidates:
        if one.screened.rate_per_s > 0:
            by_machine[one.hardware.name].append(one)
    figure = go.Figure()
    for colour, (name, candidates) in zip(PALETTE, by_machine.items(), strict=False):
        counts = [one.replicas_at_least(rate) for one in candidates]
        figure.add_scatter(
            x=[one.screened.tpot_s(rate / count) / MILLI for one, count in zip(candidates, counts, strict=True)],
            y=[one.usd_per_month(count) for one, count in zip(candidates, counts, strict=True)],
            text=[
                f"{one.scheme}, KV cache {one.assignment.kv.name}, {count} x {one.devices}"
                for one, count in zip(candidates, counts, strict=True)
            ],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 7, "opacity": 0.6},
            hovertemplate="%{text}<br>%{x:.3g} ms, $%{y:,.0f}<extra></extra>",
        )
    best = found.by_machine
    figure.add_scatter(
        x=[one.load.p95("tpot_s").value / MILLI for one in best],
        y=[one.usd_per_month for one in best],
        text=[machine_words(one) for one in best],
        mode="markers",
        name="best of each, simulated, p95",
        hovertemplate="%{text}<br>%{x:.3g} ms, $%{y:,.0f}<extra></extra>",
        marker={"symbol": "star", "size": 13, "color": "#1d2733"},
    )
    figure.update_yaxes(type="log")
    return styled(figure, "Cost against time per token", "milliseconds per token", "dollars a month")


def cost_by_machine(found: Sizing) -> go.Figure:
    """Return what the best deployment on each machine costs."""
    ordered = tuple(reversed(found.by_machine))
    figure = go.Figure(
        go.Bar(
            x=[one.usd_per_month for one in ordered],
            y=[one.candidate.hardware.name for one in ordered],
            text=[f"{one.gpu_count} devices, {one.candidate.scheme}" for one in ordered],
            orientation="h",
            marker={"color": PALETTE[0]},
        )
    )
    figure.update_yaxes(automargin=True)
    return styled(figure, "The best of each machine", "dollars a month", "")
