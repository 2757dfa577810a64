"""The page of a calibration study: the loss over the number of samples for every source and method, and the table."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from codesign import __version__
from codesign.quantize.study_file import Spread, Study, spreads
from codesign.report.page import figure_html, write_page
from codesign.table import Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FOOTER = (
    "KL divergence per token from the exact model on text that no calibration saw; error bars and +- are the standard "
    "deviation over seeds. Without calibration: ranges are those of the very inputs that are rounded, weights are "
    "rounded to nearest. The head stays exact."
)


def write_study_page(study: Study, path: Path) -> None:
    """Write the page of a study as one offline file."""
    found = spreads(study)
    write_page(
        "study.html",
        path,
        title=f"Calibration of {study.settings.model}",
        verdicts=study_verdicts(study),
        charts=[figure_html(_chart(study, name, found), name) for name in study.settings.schemes],
        table=study_table(study),
        conditions=conditions(study),
        footer=f"codesign {__version__}. {FOOTER}",
    )


def conditions(study: Study) -> str:
    """Return what was varied and on what it was evaluated."""
    settings = study.settings
    missing = f" Unfinished: {len(study.missing)} of {len(tuple(settings.cells))} runs are missing." * bool(
        study.missing
    )
    return (
        f"{settings.repeats} seeds, windows of {settings.window_tokens} tokens, evaluated on "
        f"{settings.evaluation_windows} of them.{missing}"
    )


def study_table(study: Study) -> Table:
    """Return KL in millinats by scheme, source and method, a column for each size."""
    rows: dict[tuple[str, str, str], dict[int, Spread]] = {}
    for one in spreads(study):
        rows.setdefault((one.scheme, one.source, one.method), {})[one.sample_count] = one
    sizes = study.settings.sizes
    references = {one.scheme: one for one in study.references}
    cells = [
        (*key, *(_cell(by_size.get(size)) for size in sizes), _millinats(references[key[0]].kl_nats))
        for key, by_size in rows.items()
    ]
    headers = ("scheme", "text", "method", *(f"{size} windows" for size in sizes), "no calibration")
    return Table(headers, cells, right=tuple(range(3, 4 + len(sizes))))


def study_verdicts(study: Study) -> list[str]:
    """Return, for each scheme, what calibrates best and from how many windows on more change nothing."""
    found, sentences = spreads(study), []
    for scheme in study.settings.schemes:
        of_scheme = [one for one in found if one.scheme == scheme]
        if not of_scheme:
            continue
        best = min(of_scheme, key=lambda one: one.kl_nats)
        enough = _enough(best, of_scheme)
        sentences.append(
            f"{scheme}: least loss with {_named(best)} ({_millinats(best.kl_nats)} millinats at {best.sample_count} "
            f"windows), within its spread from {enough} on."
        )
    return sentences


def _enough(best: Spread, found: Iterable[Spread]) -> int:
    """Return the fewest windows whose loss is within two deviations, or 5 %, of the best."""
    alike = [one for one in found if (one.source, one.method) == (best.source, best.method)]
    limit = max(2 * (best.kl_deviation_nats or 0.0), 0.05 * best.kl_nats)
    return min(one.sample_count for one in alike if one.kl_nats - best.kl_nats <= limit)


def _named(one: Spread) -> str:
    return f"{one.method} on {one.source}"


def _millinats(nats: float) -> str:
    value = 1000 * nats
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(one: Spread | None) -> str:
    if one is None:
        return ""
    spread = "" if one.kl_deviation_nats is None else f" +- {_millinats(one.kl_deviation_nats)}"
    return _millinats(one.kl_nats) + spread


def _chart(study: Study, scheme: str, found: Iterable[Spread]) -> "Figure":
    """Return KL over the number of windows, a line for each source and method."""
    import plotly.graph_objects as go

    from codesign.report.charts import INK, PALETTE, styled

    figure = go.Figure()
    lines: dict[str, list[Spread]] = {}
    for one in found:
        if one.scheme == scheme:
            lines.setdefault(_named(one), []).append(one)
    sources = study.settings.sources
    methods = list(dict.fromkeys(one.method for line in lines.values() for one in line))
    for name, line in lines.items():
        figure.add_scatter(
            x=[one.sample_count for one in line],
            y=[1000 * one.kl_nats for one in line],
            error_y={"type": "data", "array": [1000 * (one.kl_deviation_nats or 0.0) for one in line], "thickness": 1},
            mode="lines+markers",
            name=name,
            line={
                "color": PALETTE[methods.index(line[0].method) % len(PALETTE)],
                "dash": ("solid", "dash", "dot")[sources.index(line[0].source) % 3],
            },
        )
    for reference in study.references:
        if reference.scheme == scheme:
            figure.add_hline(
                y=1000 * reference.kl_nats,
                line={"color": INK, "dash": "dot", "width": 1},
                annotation_text="no calibration",
            )
    figure.update_xaxes(
        type="log", tickvals=list(study.settings.sizes), ticktext=[str(s) for s in study.settings.sizes]
    )
    figure.update_yaxes(type="log")
    return styled(figure, scheme, "calibration windows", "KL, millinats per token")
