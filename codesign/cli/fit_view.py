"""A fit as terminal tables: which rows, how far off before and after, what was not fitted."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from codesign.cli.output import print_line, print_table
from codesign.cost.fit import FrameFit, Key, Selection
from codesign.cost.measured import MeasuredTable
from codesign.cost.sheet import Calibration, KernelSheet
from codesign.cost.validate import ErrorStatistics
from codesign.report.validate_tables import error_table, rejected_rows
from codesign.table import Table
from codesign.units import format_percent


def print_used_rows(table: MeasuredTable, selection: Selection) -> None:
    """Print how many rows are fitted and which ones were rejected."""
    rejected = sum(len(one.lines) for one in table.rejections)
    print_line(
        f"{table.row_count:,} rows in the file; rejected rows: {rejected:,}; rows of other machines, libraries or "
        f"versions: {selection.other_count:,}; rows to fit: {len(selection.frame):,}."
    )
    if table.rejections:
        print_table(rejected_rows(table))


def print_fit(fit: FrameFit, before: Mapping[Key, ErrorStatistics | None]) -> None:
    """Print the errors before and after, and what was not fitted."""
    tables = []
    if fit.calibrations:
        known = tuple(one for one in before.values() if one is not None)
        tables = [error_table("before: shipped model", known), _after_table(fit)]
        tables = tables if known else tables[1:]
    closer = [" ".join(key) for key, one in before.items() if one and _is_closer(one, fit.calibrations[key])]
    for table in (*tables, *([_refused_table(fit)] if fit.refusals else [])):
        print_line()
        print_table(table)
    if closer:
        print_line()
        print_line(f"The shipped model is closer to these rows, so measure more or leave out: {', '.join(closer)}.")


def _is_closer(before: ErrorStatistics, after: Calibration) -> bool:
    return before.mape_fraction < after.error_fraction


def _after_table(fit: FrameFit) -> Table:
    rows = [
        (
            " ".join(key),
            f"{one.sample_count:,}",
            format_percent(one.error_fraction),
            f"{one.low_factor:.2f}x to {one.high_factor:.2f}x",
        )
        for key, one in fit.calibrations.items()
    ]
    return Table(("after: shapes left out of the fit", "rows", "mean error", "80 % interval"), rows, right=(1, 2))


def _refused_table(fit: FrameFit) -> Table:
    rows = [(f"{one.row_count:,}", f"{one.operation} {one.scheme}".strip(), one.reason) for one in fit.refusals]
    return Table(("rows not fitted", "of", "reason"), rows, right=(0,))


def print_use(path: Path, hw: str, sheet: KernelSheet) -> None:
    """Print where the sheet is and how it is used."""
    options = shlex.join(["--hw", hw, "--library", sheet.library, "--sheet", str(path)])
    print_line()
    print_line(f"Written: {path}. Use it in plan, predict, compare and validate:")
    print_line(f"  codesign plan {options} --model NAME")
