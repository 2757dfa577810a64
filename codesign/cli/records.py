"""`codesign records`: what was measured, as tables and files; `merge` runs, `import` other tools' results."""

from pathlib import Path

import click

from codesign.cli.options import HELP, json_option, output_path, warn
from codesign.profiler.imports import FORMATS

SALVAGE_HELP = "Read what lies around damaged records."


@click.group(context_settings=HELP)
def command() -> None:
    """Show, merge, export and import measurements."""


def runs_argument(function: "click.decorators.FC") -> "click.decorators.FC":
    """Add RUN... and --salvage."""
    function = click.option("--salvage", is_flag=True, help=SALVAGE_HELP)(function)
    return click.argument("runs", nargs=-1, required=True, metavar="RUN...")(function)


@command.command(epilog="Example: codesign records show run", context_settings=HELP)
@runs_argument
@json_option
def show(runs: tuple[str, ...], salvage: bool, as_json: bool) -> None:
    """Print the rows of runs, those that are not valid with their reasons."""
    from codesign.cli.profile_view import print_run
    from codesign.profiler.run_folder import read_run

    if as_json and len(runs) > 1:
        raise click.UsageError("--json prints one run; merge them first.")
    for name in runs:
        run = read_run(Path(name), salvage)
        warn(run.warnings)
        print_run(run, as_json=as_json)


@command.command(epilog="Example: codesign records merge run1 run2 -o run", context_settings=HELP)
@runs_argument
@click.option("-o", "--out", "folder", required=True, metavar="RUN", help="The new run directory.")
def merge(runs: tuple[str, ...], salvage: bool, folder: str) -> None:
    """Put runs of one machine and one set of conditions into a new run; the newest of a case counts."""
    from codesign.cli.output import print_line
    from codesign.profiler.run_folder import merge_runs

    run = merge_runs(tuple(map(Path, runs)), Path(folder), salvage)
    warn(run.warnings)
    print_line(f"Written: {folder}, {len(run.measurements)} cases of {len(runs)} runs.")


@command.command(epilog="Example: codesign records export run -o measured.csv", context_settings=HELP)
@runs_argument
@click.option("-o", "--out", "target", metavar="FILE", help="CSV or Parquet by the ending; else standard output.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def export(runs: tuple[str, ...], salvage: bool, target: str | None, force: bool) -> None:
    """Write all rows in the columns of measured tables, with their verdicts."""
    from codesign.cost.table_file import write_table
    from codesign.profiler.export import frame_of
    from codesign.profiler.run_folder import read_run

    path = output_path(target, force=force)
    read = [read_run(Path(name), salvage) for name in runs]
    warn(text for run in read for text in run.warnings)
    write_table(frame_of(tuple(one for run in read for one in run.measurements)), path)


@command.command("import", epilog="Example: codesign records import bench.json --format llama-bench -o run --hw a100",
                 context_settings=HELP)  # fmt: skip
@click.argument("source", metavar="FILE")
@click.option("--format", "format_", required=True, type=click.Choice(sorted(FORMATS)), help="The tool that wrote it.")
@click.option("--hw", "--hardware", "hw", required=True, metavar="NAME|FILE", help="The machine that was measured.")
@click.option("-o", "--out", "folder", required=True, metavar="RUN", help="The new run directory.")
def import_(source: str, format_: str, hw: str, folder: str) -> None:
    """Turn the results of another tool into a run, with the conditions that they state.

    For llama-bench FILE may be a GGUF model: llama-bench, on the PATH or in $CODESIGN_LLAMA_CPP, is run on it first.
    What they do not state is missing in the rows. Times taken under a profiler, and of few samples, are suspect.
    """
    from codesign.cli.output import print_line
    from codesign.profiler.imports.run import import_run

    run = import_run(Path(source), format_, hw, Path(folder))
    warn(run.warnings)
    print_line(f"Written: {folder}, {len(run.measurements)} cases; left out: {len(run.head.skipped)}.")
