"""One offline page: template, data and the plotting script in a single file that makes no request."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.files import write_atomic

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


@cache
def _environment() -> Any:
    import jinja2

    folder = Path(__file__).parent / "templates"
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def figure_html(figure: "Figure", name: str) -> str:
    """Return a figure as HTML without the script; the same figure gives the same text."""
    text: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return text


def write_page(template: str, path: Path, **values: Any) -> None:
    """Fill a template, with the plotting script embedded, and write it whole or not at all."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    page = _environment().get_template(template)
    write_atomic(path, page.render(policy=POLICY, plotly_script=Markup(get_plotlyjs()), **values))
