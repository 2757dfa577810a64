"""`codesign validate`: predicted against measured for a table of kernels or of servers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codesign.cli.options import HELP, json_option, sheet_option

if TYPE_CHECKING:
    from codesign.cost.validate import TableValidation


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


@click.command(
    epilog="Example: codesign validate --input measured.parquet --html page.html --fail-above 10%",
    context_settings=HELP,
)
@click.option(
    "--input",
    "input_path",
    required=True,
    metavar="FILE|RUN",
    help="Measured kernels or servers as CSV or Parquet, or a run of `codesign profile`.",
)
@click.option("--html", metavar="FILE", help="Write one offline page.")
@click.option("--force", is_flag=True, help="Replace an existing page.")
@click.option(
    "--fail-above",
    type=Percent(),
    metavar="SHARE",
    help="Exit 7 where the mean absolute error of any figure is above this.",
)
@sheet_option
@json_option
def command(input_path: str, *, html: str | None, force: bool, fail_above: float | None, **given: Any) -> None:
    """Compare predictions with measurements of kernels or of servers.

    Columns as for `predict kernels`, and measured_s; or as for `predict serving`, and measured_tpot_s or
    measured_ttft_s; or those of aiconfigurator. Rows that cannot be meant are rejected with their line numbers.
    """
    from codesign.cli.options import output_path
    from codesign.cli.output import print_json
    from codesign.cli.validate_view import print_validation
    from codesign.cost.sheet_file import read_sheets
    from codesign.cost.validate import predict_figures, validate_table
    from codesign.profiler.export import read_measurements

    page = output_path(html, force=force)
    table = read_measurements(input_path)
    predicted = predict_figures(table, read_sheets(given["sheet_files"]))
    found = validate_table(table, predicted)
    if page is not None:
        from codesign.report.validate_page import write_validation_page

        write_validation_page(found, predicted, Path(input_path).name, page)
    if given["as_json"]:
        print_json(found, "validation")
    else:
        print_validation(found)
    check(found, input_path, fail_above)


def check(found: "TableValidation", input_path: str, fail_above: float | None) -> None:
    """Raise where nothing could be compared, or where a figure is further off than allowed."""
    from codesign.cost.validate import FIGURE_NAMES
    from codesign.errors import GateError, InputError
    from codesign.units import format_percent

    if all(figure.whole is None for figure in found.figures):
        raise InputError(
            f"{input_path}: no row could be predicted; the reasons are in the output, and --json has all of them."
        )
    for figure in found.figures:
        if fail_above is not None and (figure.whole is None or figure.whole.mape_fraction > fail_above):
            reached = "unknown" if figure.whole is None else format_percent(figure.whole.mape_fraction)
            name, limit = FIGURE_NAMES[figure.figure], format_percent(fail_above)
            raise GateError(f"The mean absolute error of the {name} is {reached}, above the limit of {limit}.")
