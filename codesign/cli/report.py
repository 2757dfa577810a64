"""`codesign report`: one offline page from a run of the profiler."""

from pathlib import Path

import click

from codesign.cli.options import HELP, json_option, output_path, sheet_option


@click.command(epilog="Example: codesign report run/ -o report.html", context_settings=HELP)
@click.argument("run", metavar="RUN")
@click.option("-o", "--out", metavar="FILE", help="The page; its numbers go beside it as JSON. Else RUN/report.html.")
@click.option("--force", is_flag=True, help="Replace an existing page.")
@sheet_option
@json_option
def command(run: str, out: str | None, force: bool, sheet_files: tuple[str, ...], as_json: bool) -> None:
    """Compare what a run measured with what is predicted, and say what paid.

    Sheets fitted from other runs, or from this one, are given with --sheet; else the roofs of the machine predict.
    """
    from codesign.cli.output import print_json, print_line
    from codesign.cost.sheet_file import read_sheets
    from codesign.profiler.run_folder import read_run
    from codesign.report.run_page import report_json, verdicts, write_run_page
    from codesign.report.run_report import run_report

    path = output_path(out or str(Path(run) / "report.html"), force=force)
    measured = read_run(Path(run))
    report = run_report(measured, read_sheets(sheet_files))
    if path is not None:
        write_run_page(measured, report, path)
    if as_json:
        print_json(report_json(measured, report), "report")
        return
    for sentence in (*measured.warnings, *verdicts(report)):
        print_line(sentence)
    if path is not None:
        print_line(f"Written: {path}")
