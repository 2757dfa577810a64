"""`codesign fit`: a kernel sheet of one's own from a table of measured kernels."""

import datetime
from pathlib import Path

import click

from codesign.cli.options import HELP


@click.command(
    epilog="Example: codesign fit --measurements measured.csv --hw a100 --library vllm", context_settings=HELP
)
@click.option("--measurements", required=True, metavar="FILE", help="Measured kernels as CSV or Parquet.")
@click.option("--hw", "--hardware", "hw", required=True, metavar="NAME|FILE", help="Machine: a name or a YAML file.")
@click.option(
    "--library", required=True, metavar="NAME", help="Kernel library, with a version where there are several."
)
@click.option("--out", metavar="FILE", help="Write here; else <machine>.<library>.yaml in the current folder.")
@click.option("--force", is_flag=True, help="Replace an existing sheet.")
def command(measurements: str, hw: str, library: str, out: str | None, force: bool) -> None:
    """Fit a kernel sheet from measured kernels of one machine with one library.

    Columns as for `predict kernels`, and measured_s; or those of aiconfigurator. Operations that cannot be fitted are
    named with the reason, the others are fitted.
    """
    from codesign import __version__
    from codesign.cli.fit_view import print_fit, print_use, print_used_rows
    from codesign.cli.options import output_path
    from codesign.cost.fit import errors_before, fit_frame, select_rows, split_library
    from codesign.cost.measured import read_measured_table
    from codesign.cost.sheet import KernelSheet
    from codesign.cost.sheet_file import sheet_yaml
    from codesign.errors import InputError
    from codesign.files import write_atomic
    from codesign.hardware.file import load_hardware

    hardware, name = load_hardware(hw), split_library(library)[0]
    path = output_path(out or f"{hardware.name}.{name}.yaml", force=force)
    table = read_measured_table(measurements)
    if table.kind != "kernels":
        raise InputError(f"{measurements}: this table holds runs of servers; a sheet is fitted from kernels.")
    selection = select_rows(table.frame, hardware, library)
    print_used_rows(table, selection)
    fit = fit_frame(selection.frame, hardware)
    print_fit(fit, errors_before(fit, selection, hw))
    if not fit.calibrations or path is None:
        raise InputError(f"{measurements}: nothing could be fitted, no sheet was written; the reasons are above.")
    sheet = KernelSheet(
        hardware=hardware.name,
        library=selection.library,
        library_version=selection.library_version,
        date=datetime.date.today().isoformat(),
        source=f"codesign {__version__} fit of {len(selection.frame):,} rows of {Path(measurements).name}",
        calibrations=fit.calibrations,
    )
    write_atomic(path, sheet_yaml(sheet))
    print_use(path, hw, sheet)
