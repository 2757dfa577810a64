"""`codesign validate`: predicted against measured for a table of kernels."""

from typing import Any

import click

from codesign.cli.options import HELP, json_option


class Percent(click.ParamType[float]):
    """A share such as 10% or 0.1."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share as a fraction."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f'"{text[:40]}" is not a share; write 10% or 0.1.', param, ctx)
        if not 0 < number < 1e6:
            self.fail(f'"{text[:40]}" must be above zero.', param, ctx)
        return number


@click.command(epilog="Example: codesign validate --input measured.parquet --fail-above 10%", context_settings=HELP)
@click.option("--input", "input_path", required=True, metavar="FILE", help="Measured kernels as CSV or Parquet.")
@click.option(
    "--fail-above", type=Percent(), metavar="SHARE", help="Exit 7 where the mean absolute error is above this."
)
@json_option
def command(input_path: str, fail_above: float | None, as_json: bool) -> None:
    """Compare predictions with measurements: columns as for `predict kernels`, and measured_s."""
    from codesign.cli.output import print_json
    from codesign.cli.validate_view import print_validation
    from codesign.cost.measured import read_measured
    from codesign.cost.validate import validate
    from codesign.errors import GateError, InputError
    from codesign.units import format_percent

    found = validate(read_measured(input_path))
    if found is None:
        raise InputError(f"{input_path}: no row could be predicted; `codesign predict kernels` gives the reasons.")
    if as_json:
        print_json(found, "validation")
    else:
        print_validation(found)
    if fail_above is not None and found.whole.mape_fraction > fail_above:
        reached = format_percent(found.whole.mape_fraction)
        raise GateError(f"The mean absolute error is {reached}, above the limit of {format_percent(fail_above)}.")
