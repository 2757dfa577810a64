"""Tables and JSON on standard output; names from files are shown literally."""

import sys
import unicodedata
from typing import Any

from codesign.codec import to_plain
from codesign.files import to_json
from codesign.table import Table

PIPED_WIDTH = 120


def plain(text: str) -> str:
    """Return the text without control, escape and direction characters, so that it cannot steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def print_json(value: Any, schema: str) -> None:
    """Print one JSON document that names its schema and version."""
    sys.stdout.write(to_json({"schema": f"codesign.{schema}", "schema_version": 1, **_as_object(to_plain(value))}))


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"items": value}


def print_line(text: str = "") -> None:
    """Print a paragraph, folded at the width of the output."""
    import rich.console
    import rich.text

    _console().print(rich.text.Text(plain(text)))


def print_title(text: str) -> None:
    """Print the title of a table."""
    import rich.text

    _console().print(rich.text.Text(plain(text), style="bold"))


def print_table(table: Table) -> None:
    """Print a table; the last column takes what room is left."""
    import rich.box
    import rich.table
    import rich.text

    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, header in enumerate(table.headers):
        last = i == len(table.headers) - 1
        grid.add_column(
            header,
            justify="right" if i in table.right else "left",
            no_wrap=not last,
            overflow="fold" if last else "ellipsis",
        )
    for row in table.rows:
        grid.add_row(*(rich.text.Text(plain(cell)) for cell in row))
    _console().print(grid)


def _console() -> Any:
    import rich.console

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return rich.console.Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
