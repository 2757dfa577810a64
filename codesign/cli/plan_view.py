"""A plan as terminal tables."""

from codesign.cli.output import print_advice, print_line, print_table, print_title
from codesign.plan.file import Plan
from codesign.plan.present import (
    advice_lines,
    break_even_rows,
    footnote,
    gain_rows,
    group_rows,
    headline,
    measured_rows,
    pareto_rows,
    refused_rows,
    sheet_lines,
    total_rows,
)


def print_plan(plan: Plan, *, every_group: bool = False) -> None:
    """Print the verdict, the advice, the groups, the totals, where the gain went, break-even points and refusals."""
    print_title(headline(plan))
    print_line(plan.verdict)
    for warning in plan.warnings:
        print_line(f"Warning: {warning}")
    print_advice(advice_lines(plan))
    tables = [group_rows(plan, every_group=every_group), total_rows(plan), gain_rows(plan), break_even_rows(plan)]
    if plan.measured:
        tables.append(measured_rows(plan))
    if plan.pareto is not None:
        tables.append(pareto_rows(plan))
    for table in (*tables, refused_rows(plan)):
        if table.rows:
            print_line()
            print_table(table)
    print_line()
    print_line(footnote(plan))
    for line in sheet_lines(plan):
        print_line(line)
