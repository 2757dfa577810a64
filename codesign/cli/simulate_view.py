"""Simulated load as terminal tables."""

from codesign.capacity.load_curve import LoadCurve
from codesign.capacity.present import curve_table, percentile_table, question_title, summary_lines
from codesign.capacity.question import Question
from codesign.cli.output import print_line, print_table, print_title


def print_simulation(question: Question, curve: LoadCurve) -> None:
    """Print percentiles of one load, or one row per rate."""
    print_title(question_title(question))
    if len(curve.loads) == 1:
        print_table(percentile_table(curve.loads[0]))
    else:
        print_table(curve_table(curve))
    for line in summary_lines(question, curve):
        print_line(line)
