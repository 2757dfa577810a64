"""A validation as terminal tables."""

from codesign.cli.output import print_line, print_table
from codesign.cost.validate import TableValidation
from codesign.report.validate_tables import counts, figure_tables, figure_verdict, rejected_rows


def print_validation(found: TableValidation) -> None:
    """Print per figure the verdict and all tables, and which rows were rejected."""
    print_line(counts(found))
    if found.rejections:
        print_table(rejected_rows(found))
    for figure in found.figures:
        print_line()
        print_line(figure_verdict(figure))
        for _, table in figure_tables(figure):
            print_line()
            print_table(table)
