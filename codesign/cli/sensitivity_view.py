"""A measured quality table in short: what each scheme would lose everywhere, and where most of it."""

import math
import shlex
from pathlib import Path

from codesign.cli.output import print_line, print_table
from codesign.model.groups import GroupKey
from codesign.quality.cells import Task
from codesign.quality.table import QualityTable
from codesign.table import Table
from codesign.units import format_percent, significant

_NAMED_GROUPS = 3


def print_sensitivity(table: QualityTable, task: Task, path: Path) -> None:
    """Print the sum and the most sensitive groups of every scheme, and what to do with the file."""
    print_table(_schemes(table, task))
    print_line()
    print_line(
        f"Sums over-count or under-count what happens together; they are times {significant(table.calibration)}, the "
        f"calibration. Use the table with: codesign plan --quality {shlex.quote(str(path))} --model ..."
    )


def _schemes(table: QualityTable, task: Task) -> Table:
    rows = []
    for scheme in task.schemes:
        cells = {
            key: cell.loss_nats * table.calibration for (key, name), cell in table.cells.items() if name == scheme.name
        }
        total = math.fsum(cells.values())
        worst = sorted(cells, key=lambda key: -cells[key])[:_NAMED_GROUPS]
        named = ", ".join(f"{_label(key)} {format_percent(cells[key] / total)}" for key in worst) if total > 0 else ""
        rows.append((scheme.name, f"{len(cells):,}", f"{total:.4g}", named))
    return Table(("scheme", "groups", "loss everywhere, nats", "most sensitive"), tuple(rows), right=(1, 2))


def _label(key: GroupKey) -> str:
    return key[1] if key[0] is None else f"{key[0]}.{key[1]}"
