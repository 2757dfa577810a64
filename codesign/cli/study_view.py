"""A calibration study as a terminal table."""

from codesign.cli.output import print_line, print_table
from codesign.quantize.study_file import Study
from codesign.report.study_page import conditions, study_table, study_verdicts


def print_study(study: Study) -> None:
    """Print the loss by source, method and size, and what it says."""
    print_line(
        f"KL of {study.settings.model} from itself, calibrated: millinats per token, mean +- deviation over seeds"
    )
    print_line(conditions(study))
    print_table(study_table(study))
    print_line()
    for sentence in study_verdicts(study):
        print_line(sentence)
