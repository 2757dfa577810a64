"""`codesign fit`: kernel sheets of one's own from a table of measured kernels, one per library."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codesign.cli.options import HELP, output_path, warn
from codesign.errors import InputError

if TYPE_CHECKING:
    from codesign.cost.measured import MeasuredTable
    from codesign.hardware.hardware import Hardware


@click.command(
    epilog="Example: codesign fit --measurements measured.csv --hw a100 --library vllm", context_settings=HELP
)
@click.option(
    "--measurements",
    required=True,
    metavar="FILE|RUN",
    help="Measured kernels as CSV or Parquet, or a run of `codesign profile`.",
)
@click.option("--hw", "--hardware", "hw", required=True, metavar="NAME|FILE", help="Machine: a name or a YAML file.")
@click.option(
    "--library",
    default="",
    metavar="NAME",
    help="Kernel library, with a version where there are several; else a sheet for each in the table.",
)
@click.option(
    "-o",
    "--out",
    metavar="FILE|FOLDER",
    help="Write here, without --library into this folder; else <machine>.<library>.yaml in the current folder.",
)
@click.option("--force", is_flag=True, help="Replace an existing sheet.")
def command(measurements: str, hw: str, library: str, out: str | None, force: bool) -> None:
    """Fit a kernel sheet from measured kernels of one machine with one library, or one with each library.

    Columns as for `predict kernels`, and measured_s; or those of aiconfigurator. Operations that cannot be fitted are
    named with the reason, the others are fitted.
    """
    from codesign.cost.fit import libraries_of, split_library
    from codesign.hardware.file import load_hardware

    hardware = load_hardware(hw)
    if library:
        path = output_path(out or f"{hardware.name}.{split_library(library)[0]}.yaml", force=force)
        _write_sheet(Task(_kernel_table(measurements), measurements, hardware, hw), library, path)
        return
    task = Task(_kernel_table(measurements), measurements, hardware, hw)
    names = libraries_of(task.table.frame, hardware)
    folder = _folder(out)
    targets = {name: output_path(str(folder / f"{hardware.name}.{name}.yaml"), force=force) for name in names}
    problems = [problem for name, path in targets.items() if (problem := _problem_of_sheet(task, name, path))]
    if len(problems) == len(names):
        raise InputError(f"{measurements}: no sheet was written: {' '.join(problems)}")
    warn(problems)


@dataclass(frozen=True, slots=True)
class Task:
    """The table to fit and where it comes from, the machine, and the machine as the user named it."""

    table: "MeasuredTable"
    source: str
    hardware: "Hardware"
    hw: str


def _kernel_table(measurements: str) -> "MeasuredTable":
    from codesign.profiler.export import read_measurements

    table = read_measurements(measurements)
    if table.kind != "kernels":
        raise InputError(f"{measurements}: this table holds runs of servers; a sheet is fitted from kernels.")
    return table


def _folder(out: str | None) -> Path:
    folder = Path(out or ".")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{out}: sheets of several libraries need a folder; name one, or a --library.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _problem_of_sheet(task: Task, library: str, path: Path | None) -> str | None:
    """Write the sheet of one library of several; return why there is none, as that is no reason for the others."""
    from codesign.cli.output import print_line, print_title

    print_title(f"{library} on {task.hardware.name}")
    try:
        _write_sheet(task, library, path)
    except InputError as error:
        return f"{library}: {error}"
    print_line()
    return None


def _write_sheet(task: Task, library: str, path: Path | None) -> None:
    from codesign import __version__
    from codesign.cli.fit_view import print_fit, print_use, print_used_rows
    from codesign.cost.fit import errors_before, fit_frame, select_rows
    from codesign.cost.sheet import KernelSheet
    from codesign.cost.sheet_file import sheet_yaml
    from codesign.files import write_atomic

    selection = select_rows(task.table.frame, task.hardware, library)
    print_used_rows(task.table, selection)
    fit = fit_frame(selection.frame, task.hardware)
    print_fit(fit, errors_before(fit, selection, task.hw))
    if not fit.calibrations or path is None:
        raise InputError(f"{task.source}: nothing could be fitted, no sheet was written; the reasons are above.")
    sheet = KernelSheet(
        hardware=task.hardware.name,
        library=selection.library,
        library_version=selection.library_version,
        date=datetime.date.today().isoformat(),
        source=f"codesign {__version__} fit of {len(selection.frame):,} rows of {Path(task.source).name}",
        calibrations=fit.calibrations,
    )
    write_atomic(path, sheet_yaml(sheet))
    print_use(path, task.hw, sheet)
