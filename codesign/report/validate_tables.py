"""A validation as sentences and tables of text, for the terminal and for pages alike."""

from typing import Any

from codesign.cost.measured import MeasuredTable, Rejection
from codesign.cost.table import OPERATIONS
from codesign.cost.table_file import KERNEL_NUMBERS
from codesign.cost.validate import DIVISIONS, FIGURE_NAMES, ErrorStatistics, TableValidation, Validation
from codesign.table import Table
from codesign.units import format_percent, format_seconds

HEADERS = ("", "rows", "mean error", "median", "90 %", "bias", "inside 80 % interval")
NUMBER_COLUMNS = (1, 2, 3, 4, 5, 6)
REASONS_MAX = 50
REASON_LENGTH_MAX = 300
LINES_MAX = 20
# fmt: off
SHOWN = ("hw", "library", "op", "model", "scheme", "kv_dtype", "m", "n", "k", "batch", "q_tokens", "kv_tokens",
         "heads", "kv_heads", "head_dim", "tokens", "hidden", "intermediate", "experts", "top_k", "tp", "ep", "skew",
         "gpus", "message_bytes", "concurrency", "prompt_tokens", "output_tokens")
# fmt: on


def figure_verdict(found: Validation) -> str:
    """Return how far one figure is off."""
    name = FIGURE_NAMES[found.figure].capitalize()
    if found.whole is None:
        return f"{name}: no row could be predicted."
    whole = found.whole
    direction = "short" if whole.bias_fraction < 0 else "long"
    return (
        f"{name}: off by {format_percent(whole.mape_fraction)} on average over {whole.row_count:,} rows (median "
        f"{format_percent(whole.median_fraction)}, 90 % of the errors below {format_percent(whole.p90_fraction)}), "
        f"{format_percent(abs(whole.bias_fraction))} too {direction} on the whole; "
        f"{format_percent(whole.coverage_fraction)} of the measurements lie inside the 80 % interval."
    )


def counts(found: TableValidation) -> str:
    """Return how many rows were used and how many not."""
    return f"{found.row_count:,} rows in the file; rejected rows: {found.rejected_count:,}."


def figure_tables(found: Validation) -> list[tuple[str, Table]]:
    """Return the tables of one figure with their titles: the whole, each division, no prediction, the worst."""
    if found.whole is None:
        return [("Rows without prediction", unpredicted_rows(found))] if found.unpredicted else []
    tables = [("All rows", error_table("", (found.whole,)))]
    tables += [(f"By {DIVISIONS[name]}", error_table(DIVISIONS[name], rows)) for name, rows in found.divisions.items()]
    origins = tuple((name, f"{count:,}") for name, count in found.origins.items())
    tables.append(("Where the predictions come from", Table(("origin", "rows"), origins, right=(1,))))
    if found.unpredicted:
        tables.append(("Rows without prediction", unpredicted_rows(found)))
    return [*tables, ("Worst rows", worst_rows(found))]


def error_table(title: str, rows: tuple[ErrorStatistics, ...]) -> Table:
    """Return one line per part of the rows."""
    return Table((title, *HEADERS[1:]), [_error_row(row) for row in rows], right=NUMBER_COLUMNS)


def _error_row(one: ErrorStatistics) -> tuple[str, ...]:
    parts = (one.mape_fraction, one.median_fraction, one.p90_fraction, one.bias_fraction, one.coverage_fraction)
    return (one.label, f"{one.row_count:,}", *(format_percent(part) for part in parts))


def unpredicted_rows(found: Validation) -> Table:
    """Return the most frequent reasons for which rows have no prediction."""
    reasons = list(found.unpredicted.items())
    rows = [(f"{count:,}", reason[:REASON_LENGTH_MAX]) for reason, count in reasons[:REASONS_MAX]]
    if len(reasons) > REASONS_MAX:
        rows.append((f"{sum(n for _, n in reasons[REASONS_MAX:]):,}", f"{len(reasons) - REASONS_MAX:,} other reasons"))
    return Table(("rows without prediction", "reason"), rows, right=(0,))


def rejected_rows(found: TableValidation | MeasuredTable) -> Table:
    """Return the rows that were not used, by reason."""
    rows = [(f"{len(one.lines):,}", one.reason, _lines(one)) for one in found.rejections]
    return Table(("rejected rows", "reason", "lines"), rows, right=(0,))


def _lines(one: Rejection) -> str:
    """Return the lines, runs of them as `first-last`."""
    runs: list[list[int]] = []
    for line in one.lines:
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    shown = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs[:LINES_MAX])
    return f"{shown} and more" if len(runs) > LINES_MAX else shown


def worst_rows(found: Validation) -> Table:
    """Return the rows that are furthest off."""
    rows = [
        (
            str(row["line"]),
            format_seconds(row["measured_s"]),
            format_seconds(row["predicted_s"]),
            f"{format_seconds(row['low_s'])} to {format_seconds(row['high_s'])}",
            described(row),
        )
        for row in found.worst
    ]
    return Table(("line", "measured", "predicted", "80 % interval", "of"), rows, right=(0, 1, 2))


def described(row: dict[str, Any]) -> str:
    """Return what the row is of, such as `hw=a100, op=gemm, m=16`, without the sizes that its op does not have."""
    operation = OPERATIONS.get(str(row.get("op", "")).lower())
    foreign = set() if operation is None else set(KERNEL_NUMBERS) - {*operation.needed, *operation.defaults}
    given = [(name, row[name]) for name in SHOWN if name not in foreign and row.get(name) not in ("", None)]
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in given)
