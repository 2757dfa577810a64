"""The page of a run: verdict, pictures, tables, conditions and the command that repeats it; JSON beside it."""

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codesign import __version__
from codesign.codec import to_plain
from codesign.files import to_json, write_atomic
from codesign.profiler.environment import scrub
from codesign.profiler.run_folder import Run
from codesign.report.charts import gain_waterfall
from codesign.report.page import figure_html, write_page
from codesign.report.run_charts import gain_curves, roof_shares, roofline_chart
from codesign.report.run_gains import Gain, baseline_of, break_even
from codesign.report.run_report import RunReport
from codesign.report.validate_page import figure_part
from codesign.report.validate_tables import counts, figure_verdict, rejected_rows
from codesign.table import Table
from codesign.units import format_percent, format_seconds, significant

SKIPPED_MAX = 200
LAYER_ROWS_MAX = 2_000
WATERFALLS_MAX = 4
FOOTER = (
    "A case is checked against an exact reference before it is timed; times are medians. The share of the roof is the "
    "larger of bytes at the memory's bandwidth and operations at the peak rate, over the measured time. Gains compare "
    "the fastest kernel of a scheme with the fastest of the baseline, as geometric means over layer shapes; suspect "
    "rows count in them, not in the errors."
)


def write_run_page(run: Run, report: RunReport, path: Path) -> None:
    """Write the page as one offline file, and its numbers as JSON under the same name."""
    command = shlex.join(["codesign", "report", run.folder.name, "-o", path.name])
    write_page(
        "run.html",
        path,
        title=f"Measured kernels: {run.folder.name} on {report.hardware.title}",
        state="" if run.head.state == "complete" else f"This run is not complete: {run.head.state}.",
        verdicts=verdicts(report),
        counts=f"{verdict_text(report)} {counts(report.validation)}",
        charts=charts(report),
        figures=[figure_part(figure, report.predicted[figure.figure]) for figure in report.validation.figures],
        tables=[("Gains by scheme", gain_table(report)), ("Layers", layer_table(report))],
        rejected=rejected_rows(report.validation),
        skipped=skipped_table(run),
        energy=energy_text(run),
        environment=to_json(scrub(run.head.environment, {})),
        provenance=provenance(run, report),
        rerun=scrub(f"{run.head.command}\n{command}", {}),
        footer=f"codesign {__version__}. {FOOTER}",
    )
    write_atomic(path.with_suffix(".json"), to_json(report_json(run, report)))


def report_json(run: Run, report: RunReport) -> dict[str, Any]:
    """Return the report's numbers as plain JSON values."""
    return {
        "schema": "codesign.report", "schema_version": 1, "run": run.folder.name, "state": run.head.state,
        "verdicts": verdicts(report), "verdict_counts": report.verdict_counts,
        "validation": to_plain(report.validation), "gains": to_plain(report.gains), "layers": to_plain(report.layers),
    }  # fmt: skip


def verdicts(report: RunReport) -> list[str]:
    """Return the page's first sentences: how far predictions were off, and what paid."""
    sentences = [figure_verdict(figure) for figure in report.validation.figures]
    most = Counter(gain.threads for gain in report.gains).most_common(1)[0][0] if report.gains else 0
    for scheme in sorted({gain.scheme for gain in report.gains}):
        curve = [gain for gain in report.gains if (gain.scheme, gain.threads) == (scheme, most)]
        if curve:
            sentences.append(gain_sentence(curve, baseline_of(report.frame) or ""))
    return sentences or ["No row could be used."]


def gain_sentence(curve: list[Gain], baseline: str) -> str:
    """Return what one scheme gained, with its sign and where it ends."""
    first, last = curve[0], curve[-1]
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    end = break_even(curve)
    stops = f"; it stops paying at about {significant(end, 2)} rows" if end is not None else ""
    return (
        f"{first.scheme} on {threads}: {significant(first.measured)}x the speed of {baseline} at {first.m} row"
        f"{'s' if first.m > 1 else ''}, {significant(last.measured)}x at {last.m:,}{stops}."
    )


def verdict_text(report: RunReport) -> str:
    """Return how many cases were valid, suspect and invalid."""
    counted = report.verdict_counts
    parts = [f"{counted[name]:,} {name}" for name in ("valid", "suspect", "invalid") if name in counted]
    return f"{sum(counted.values()):,} cases: {', '.join(parts)}."


def charts(report: RunReport) -> list[dict[str, Any]]:
    """Return the run's own pictures as HTML, those that need the page's width marked."""
    rows = report.frame[(report.frame["op"] == "gemm") & (report.frame["verdict"] != "invalid")]
    if rows.empty:
        return []
    baseline, m = baseline_of(rows) or "", int(rows["m"].min())
    figures = [(roofline_chart(rows, report.hardware), True)]
    for threads in sorted({gain.threads for gain in report.gains}):
        figures.append((gain_curves(report.gains, threads, baseline), False))
    for scheme, steps in list(report.steps.items())[:WATERFALLS_MAX]:
        figures.append((gain_waterfall(steps, f"{scheme}, m = {m}", baseline, "measured"), False))
    figures += [(roof_shares(rows, int(threads)), True) for threads in sorted(set(rows["threads"]))]
    return [{"html": figure_html(figure, f"run-{i}"), "wide": wide} for i, (figure, wide) in enumerate(figures)]


def gain_table(report: RunReport) -> Table:
    """Return measured and predicted gains by scheme, threads and rows."""
    rows = [
        (one.scheme, str(one.threads), f"{one.m:,}", f"{one.measured:.2f}x",
         "-" if one.predicted is None else f"{one.predicted:.2f}x",
         "-" if one.predicted is None else format_percent(one.predicted / one.measured - 1), str(one.layer_count))
        for one in report.gains
    ]  # fmt: skip
    headers = ("scheme", "threads", "rows", "measured", "predicted", "error", "layer shapes")
    return Table(headers, rows, right=tuple(range(1, 7)))


def layer_table(report: RunReport) -> Table:
    """Return the fastest kernel of every scheme by multiplication, and what must be known of those kernels."""
    shown = report.layers[:LAYER_ROWS_MAX]
    noted = any(one.kernel_note for one in shown)
    rows = [
        (f"{one.m:,} x {one.n:,} x {one.k:,}", str(one.threads), one.scheme, f"{one.library} {one.kernel}",
         format_seconds(one.measured_s), "-" if one.predicted_s is None else format_seconds(one.predicted_s),
         f"{one.gain:.2f}x", format_percent(one.roof_fraction), *([one.kernel_note] if noted else []))
        for one in shown
    ]  # fmt: skip
    headers = ("m x n x k", "threads", "scheme", "fastest kernel", "measured", "predicted", "gain", "of the roof")
    return Table((*headers, *(["of the kernel"] if noted else [])), rows, right=(0, 1, 4, 5, 6, 7))


def skipped_table(run: Run) -> Table:
    """Return what was not measured, with reasons."""
    skipped = run.head.skipped
    rows = [(one.what, one.reason) for one in skipped[:SKIPPED_MAX]]
    if len(skipped) > SKIPPED_MAX:
        rows.append((f"{len(skipped) - SKIPPED_MAX:,} more", "in run.json"))
    return Table(("not measured", "reason"), rows)


def energy_text(run: Run) -> str:
    """Return whether energy was measured, and if not why."""
    why = _reasons(run.head.environment, "rapl") or _reasons(run.head.environment, "energy")
    return f"Not measured: {why}" if why else "Not measured in this run."


def _reasons(environment: Mapping[str, Any], word: str) -> str:
    """Return the reason beside an absent value whose name holds a word."""
    for name, value in environment.items():
        if isinstance(value, Mapping):
            if word in name.lower() and value.get("value", "") is None:
                return str(value.get("why", ""))
            if found := _reasons(value, word):
                return found
    return ""


def provenance(run: Run, report: RunReport) -> str:
    """Return when, with what and from which seed the run was made."""
    head = run.head
    return (
        f"Started {head.started_utc}, codesign {head.codesign_version}, commit {head.commit}, seed {head.seed}; "
        f"machine profile {report.hardware.name}. {len(head.candidates)} kernels were candidates."
    )
