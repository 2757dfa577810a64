"""A sizing as a terminal table."""

from codesign.capacity.candidates import Service
from codesign.capacity.size import Sizing
from codesign.capacity.size_present import detail_lines, machines_table, service_title, verdict
from codesign.cli.output import print_line, print_table, print_title


def print_sizing(service: Service, found: Sizing) -> None:
    """Print the answer, one row per machine, and what to know beside it."""
    print_title(service_title(service))
    print_line(verdict(found))
    print_line()
    print_table(machines_table(found))
    for line in detail_lines(service, found):
        print_line(line)
