"""Tables and JSON on standard output; names from files are shown literally."""

import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from codesign.codec import to_plain
from codesign.files import to_json
from codesign.table import Table

PIPED_WIDTH = 120
LAST_COLUMN_WIDTH = 32
COLUMN_GAP = 3


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


def print_advice(lines: Sequence[str]) -> None:
    """Print advice, a line each; nothing where there is none."""
    if lines:
        print_line()
    for line in lines:
        print_line(f"- {line}")


def print_title(text: str) -> None:
    """Print the title of a table."""
    import rich.text

    _console().print(rich.text.Text(plain(text), style="bold"))


def print_table(table: Table) -> None:
    """Print a table; the last column takes what room is left. Cells are folded, never cut."""
    import rich.box
    import rich.table
    import rich.text

    cells = [[plain(cell) for cell in row] for row in table.rows]
    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, header in enumerate(table.headers):
        justify: Literal["left", "right"] = "right" if i in table.right else "left"
        grid.add_column(plain(header), justify=justify, overflow="fold")
    for row in cells:
        grid.add_row(*(rich.text.Text(cell) for cell in row))
    _console(_room(table.headers, cells)).print(grid)


def _room(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the width that keeps all columns but the last one whole."""
    widths = [max(len(cell) for cell in column) for column in zip(headers, *rows, strict=True)]
    return sum(widths[:-1]) + COLUMN_GAP * len(widths) + min(widths[-1], LAST_COLUMN_WIDTH)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done, on standard error; silent where it is piped."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    import rich.console

    console = rich.console.Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
    with console.status(title) as status:
        yield lambda step: status.update(plain(f"{title}: {step}"))


def _console(needed: int = 0) -> Any:
    import rich.console

    width = None if sys.stdout.isatty() else max(PIPED_WIDTH, needed)
    return rich.console.Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
