"""The page of layer errors: heat maps over blocks and roles, every layer in a table. Made from the errors alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from codesign import __version__
from codesign.quantize.layer_errors import LayerErrors, errors_by_role, worst_first
from codesign.report.charts import PALETTE, styled
from codesign.report.errors_tables import decibel, layer_table, role_table
from codesign.report.page import figure_html, write_page
from codesign.schemes.scheme import Scheme

BLOCK_TICKS = 16
Ratio = Callable[[LayerErrors], float | None]
FOOTER = (
    "dB: signal over noise of values rounded to nearest; 6 dB are one bit, 20 dB a relative error of 10 %. Every layer "
    "gets the inputs of the exact model, so that its error is its own."
)


def _weights(one: LayerErrors) -> float | None:
    return None if one.weight is None else one.weight.snr_db


def _outputs(one: LayerErrors) -> float | None:
    return None if one.inputs is None else one.inputs.output.snr_db


def _activations(one: LayerErrors) -> float | None:
    return None if one.inputs is None or one.inputs.activations is None else one.inputs.activations.snr_db


MAPS: tuple[tuple[str, str, Ratio], ...] = (
    ("outputs", "Outputs, signal over noise", _outputs),
    ("weights", "Weights, signal over noise", _weights),
    ("activations", "Rounded inputs, signal over noise", _activations),
)


def write_errors_page(found: Sequence[LayerErrors], model: str, scheme: Scheme, path: Path) -> None:
    """Write the page as one offline file; the same errors give the same bytes."""
    figures = {
        name: error_map(found, title, ratio)
        for name, title, ratio in MAPS
        if any(ratio(one) is not None for one in found)
    }
    ordered = worst_first(found)
    write_page(
        "errors.html",
        path,
        title=f"{model} in {scheme}: what rounding does to each layer",
        verdict=_verdict(ordered),
        problems=[f"{one.layer.name}: {one.problem}" for one in ordered if one.problem],
        figures=[figure_html(figure, name) for name, figure in figures.items()],
        roles=role_table(errors_by_role(found)),
        layers=layer_table(ordered),
        footer=f"codesign {__version__}. {FOOTER}",
    )


def _verdict(ordered: Sequence[LayerErrors]) -> str:
    known = [one for one in ordered if one.weight is not None]
    if not known:
        return "No layer could be rounded."
    worst, middle = known[0], known[len(known) // 2]
    what = "outputs" if worst.inputs is not None else "weights"
    return (
        f"{worst.layer.name} loses most: {decibel(worst.snr_db)} dB of its {what}, against "
        f"{decibel(middle.snr_db)} dB of the layer in the middle."
    )


def error_map(found: Sequence[LayerErrors], title: str, ratio: Ratio) -> go.Figure:
    """Return a heat map of blocks and roles, red where the noise is large; exact layers are left blank."""
    inside = [one for one in found if one.layer.block_index is not None]
    blocks = sorted({one.layer.block_index for one in inside if one.layer.block_index is not None})
    roles = list(dict.fromkeys(one.layer.role for one in inside))
    cells = {(one.layer.role, one.layer.block_index): ratio(one) for one in inside}
    figure = go.Figure(
        go.Heatmap(
            x=blocks,
            y=roles,
            z=[[_cell(cells.get((role, block))) for block in blocks] for role in roles],
            hovertemplate="block %{x}, %{y}: %{z:.1f} dB<extra></extra>",
            colorscale=[[0, PALETTE[3]], [0.5, "#f2d9b8"], [1, PALETTE[0]]],
            colorbar={"title": "dB"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickformat="d", dtick=max(1, len(blocks) // BLOCK_TICKS))
    return styled(figure, title, "block", "")


def _cell(value: float | None) -> float | None:
    return None if value is None or value in (float("inf"), float("-inf")) else round(value, 2)
