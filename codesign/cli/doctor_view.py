"""A diagnosis as two terminal tables: what is here, and what is missing for what."""

from codesign.cli.output import print_line, print_table, print_title
from codesign.profiler.doctor import Diagnosis
from codesign.table import Table


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print both tables; the second one only where something is missing."""
    print_title("What is here")
    print_table(Table(("", "what", "found"), [(one.topic, one.name, one.value or "") for one in diagnosis.present]))
    if not diagnosis.missing:
        return
    print_line()
    print_title("What is missing, and for what")
    rows = [(one.name, one.needed_for or "", f"{one.why}. Fix: {one.fix}.") for one in diagnosis.missing]
    print_table(Table(("what", "needed for", "why it is missing, and what helps"), rows))
