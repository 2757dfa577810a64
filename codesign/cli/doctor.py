"""`codesign doctor`: what is here to measure with, and what is missing for what."""

import click

from codesign.cli.options import HELP, json_option


@click.command(epilog="Example: codesign doctor", context_settings=HELP)
@json_option
def command(as_json: bool) -> None:
    """Say what is here: processor, compilers, kernels, GPUs, clocks, libraries; and how to get what is missing."""
    from codesign.cli.doctor_view import print_diagnosis
    from codesign.cli.output import print_json
    from codesign.profiler.doctor import examine

    diagnosis = examine()
    if as_json:
        print_json({"present": diagnosis.present, "missing": diagnosis.missing}, "doctor")
    else:
        print_diagnosis(diagnosis)
