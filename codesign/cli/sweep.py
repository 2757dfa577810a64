"""`codesign sweep`: every combination of a grid predicted into one Parquet file; it can be killed and goes on."""

import os
from pathlib import Path

import click

from codesign.cli.options import HELP, output_path


@click.command(epilog="Example: codesign sweep grid.yaml -o results.parquet", context_settings=HELP)
@click.argument("grid_file", metavar="GRID")
@click.option("-o", "--out", required=True, metavar="FILE", help="Write the cases here, as Parquet.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="local|ray://ADDRESS",
    help="Processes of this machine, or a ray cluster (ray alone: the one that this machine is part of).",
)
@click.option("--workers", type=click.IntRange(1, 1024), metavar="COUNT", help="Processes; else one per processor.")
@click.option("--html", metavar="FILE", help="Write one offline page.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(*, grid_file: str, out: str, engine: str, workers: int | None, html: str | None, force: bool) -> None:
    """Predict thousands of cases: machines x models x schemes x KV formats x devices x workloads."""
    from codesign.capacity.grid_file import read_grid
    from codesign.capacity.sweep import Sweep, run_sweep
    from codesign.cli.output import print_line, progress

    if engine != "local" and not engine.startswith("ray"):
        raise click.UsageError(f'--engine: "{engine[:40]}" is not understood; write local, ray or ray://ADDRESS.')
    target, page = output_path(out, force), output_path(html)
    assert target is not None
    grid = read_grid(Path(grid_file))
    with progress(f"{grid.case_count:,} cases") as step:
        known = run_sweep(
            Sweep(grid, target), engine, workers or _processors(), lambda n, of: step(f"{n} of {of} chunks")
        )
    if page:
        from codesign.report.sweep_page import write_sweep_page

        write_sweep_page(target, page)
    again = f", {known} chunks of which were there already" if known else ""
    print_line(f"{target}: {grid.case_count:,} cases of {grid.setup_count:,} setups{again}.")


def _processors() -> int:
    return len(os.sched_getaffinity(0))
