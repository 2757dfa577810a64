"""A validation as terminal tables."""

from codesign.cli.output import print_line, print_table
from codesign.cost.validate import ErrorStatistics, Validation
from codesign.table import Table
from codesign.units import format_percent, format_seconds

HEADERS = ("", "rows", "mean error", "median", "90 %", "bias", "inside 80 % interval")


def print_validation(found: Validation) -> None:
    """Print the whole, each division, what could not be predicted and the worst rows."""
    origins = ", ".join(f"{count:,} {name}" for name, count in found.origins.items())
    print_line(f"{found.whole.row_count:,} measured rows predicted; origin: {origins}.")
    print_table(Table(HEADERS, [error_row(found.whole)], right=(1, 2, 3, 4, 5, 6)))
    for name, rows in found.divisions.items():
        print_line()
        print_table(Table((f"by {name}", *HEADERS[1:]), [error_row(row) for row in rows], right=(1, 2, 3, 4, 5, 6)))
    if found.unpredicted:
        print_line()
        rows_without = [(f"{count:,}", reason) for reason, count in found.unpredicted.items()]
        print_table(Table(("rows without prediction", "reason"), rows_without, right=(0,)))
    print_line()
    worst = [
        (
            format_seconds(row["measured_s"]),
            format_seconds(row["predicted_s"]),
            ", ".join(f"{key}={value}" for key, value in row.items() if key in SHOWN and value not in ("", None)),
        )
        for row in found.worst
    ]
    print_table(Table(("measured", "predicted", "worst rows"), worst, right=(0, 1)))


# fmt: off
SHOWN = ("hw", "library", "op", "scheme", "kv_dtype", "m", "n", "k", "batch", "q_tokens", "kv_tokens", "heads",
         "kv_heads", "head_dim", "tokens", "hidden", "intermediate", "experts", "top_k", "tp", "ep", "skew", "gpus",
         "message_bytes")
# fmt: on


def error_row(one: ErrorStatistics) -> tuple[str, ...]:
    """Return one row of an error table."""
    return (
        one.label,
        f"{one.row_count:,}",
        *(format_percent(x) for x in (one.mape_fraction, one.median_fraction, one.p90_fraction, one.bias_fraction)),
        format_percent(one.coverage_fraction),
    )
