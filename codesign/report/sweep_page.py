"""The page of a sweep: cost against time per token over all machines, and the cheapest case of each and each model."""

from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from codesign import __version__
from codesign.report.charts import PALETTE, styled
from codesign.report.page import figure_html, write_page
from codesign.table import Table
from codesign.units import MILLI, format_seconds, format_usd, significant

if TYPE_CHECKING:
    from pandas import DataFrame

POINTS_MAX = 4_000
SETUP = ("hardware", "model", "scheme", "kv", "gpus", "batch", "prompt", "output")


def write_sweep_page(results: Path, path: Path) -> None:
    """Write the page of a sweep's result as one offline file; the same result gives the same bytes."""
    import pandas

    frame = pandas.read_parquet(results)
    usable = frame[(frame["reason"] == "") & (frame["fits"] == 1.0) & frame["usd_per_million_tokens"].notna()]
    refused = frame.loc[frame["reason"] != "", "reason"].value_counts()
    shown = front(usable)
    note = f"{len(frame):,} cases, {len(usable):,} of which run, fit and have a price"
    thinned = f"; the picture shows the {len(shown):,} nearest to the front" if len(shown) < len(usable) else ""
    write_page(
        "capacity.html",
        path,
        title=f"Sweep over {frame['hardware'].nunique()} machines and {frame['model'].nunique()} models",
        verdict=f"{note}{thinned}.",
        figures=[figure_html(cost_chart(shown), "cost")],
        tables=[("The cheapest case of each machine and model", cheapest_table(usable))],
        lines=[f"{count:,} cases cannot run: {reason}" for reason, count in refused.items()],
        raw="",
        footer=f"codesign {__version__}. Cost per million output tokens of a batch that arrives together.",
    )


def front(usable: "DataFrame") -> "DataFrame":
    """Return the cases that are drawn: the best of each machine and model by cost times time, evenly over them."""
    ranked = usable.assign(_rank=usable["usd_per_million_tokens"] * usable["tpot_s"])
    groups = ranked.groupby(["hardware", "model"], sort=False)
    each = max(1, POINTS_MAX // max(groups.ngroups, 1))
    return ranked.sort_values(["_rank", *SETUP]).groupby(["hardware", "model"], sort=True).head(each)


def cost_chart(shown: "DataFrame") -> go.Figure:
    """Return cost against time per token, a colour per machine."""
    figure = go.Figure()
    for number, (name, rows) in enumerate(shown.groupby("hardware", sort=True)):
        texts = [
            f"{row.model} in {row.scheme}, {row.gpus} devices, batch {row.batch:g}, {row.prompt:g} + {row.output:g}"
            for row in rows.itertuples()
        ]
        figure.add_scatter(
            x=(rows["tpot_s"] / MILLI).tolist(),
            y=rows["usd_per_million_tokens"].tolist(),
            text=texts,
            mode="markers",
            name=str(name),
            marker={"color": PALETTE[number % len(PALETTE)], "size": 6, "opacity": 0.6},
            hovertemplate="%{text}<br>%{x:.3g} ms, $%{y:.3g}<extra></extra>",
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return styled(figure, "Cost against time per token", "milliseconds per token", "dollars per million output tokens")


def cheapest_table(usable: "DataFrame") -> Table:
    """Return one row per machine and model."""
    best = usable.loc[usable.groupby(["hardware", "model"])["usd_per_million_tokens"].idxmin()]
    rows = tuple(
        (
            row.hardware,
            row.model,
            row.scheme,
            row.kv or "16 bits",
            f"{row.gpus:g}",
            f"{row.batch:g}",
            f"{row.prompt:g} + {row.output:g}",
            format_seconds(row.ttft_s),
            format_seconds(row.tpot_s),
            significant(row.tokens_per_s),
            format_usd(row.usd_per_million_tokens),
        )
        for row in best.itertuples()
    )
    headers = (
        "machine",
        "model",
        "scheme",
        "KV",
        "devices",
        "batch",
        "tokens",
        "first token",
        "per token",
        "tokens/s",
        "$/M",
    )
    return Table(headers, rows)
