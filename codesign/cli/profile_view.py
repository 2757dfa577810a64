"""A plan or a run of the profiler as tables, and its progress on standard error."""

import math
import sys
from types import TracebackType
from typing import Any

import click
import numpy as np

from codesign.cli.output import plain, print_json, print_line, print_table
from codesign.codec import to_plain
from codesign.profiler.candidates import RunPlan
from codesign.profiler.estimate import (
    plan_cost,
    predicted_beside_seconds,
    predicted_seconds,
    roof_fraction,
    run_hardware,
)
from codesign.profiler.kernel import AttentionCase, BlockCase, GemmCase
from codesign.profiler.profile import Request, memory_limit_bytes
from codesign.profiler.records import AnyCase, ForeignCase, Measurement, measurement_json
from codesign.profiler.run_folder import Run, Skipped
from codesign.profiler.soak import soak_parts
from codesign.table import Table
from codesign.units import MICRO, format_gib, format_percent, format_seconds, significant


def case_text(case: AnyCase) -> str:
    """Return a case in few words, its threads left out."""
    if isinstance(case, GemmCase):
        return f"{case.scheme} {case.m}x{case.n}x{case.k}"
    if isinstance(case, AttentionCase):
        heads = f"{case.heads}/{case.kv_heads}x{case.head_dim}"
        new = "" if case.q_tokens == 1 else f", {case.q_tokens} new"
        return f"attention {case.kv_format} {case.batch}x{heads}, {case.kv_tokens} tokens{new}"
    if isinstance(case, BlockCase):
        return (
            f"{case.scheme} {case.blocks} blocks of {case.model}, {case.phase} x {case.batch}, "
            f"{case.context_tokens} tokens, {case.kv_format} KV"
        )
    if isinstance(case, ForeignCase):
        return " ".join((case.name, *(f"{name}={value}" for name, value in case.parameters.items())))
    lengths = f"{case.prompt_tokens} + {case.output_tokens} tokens"
    return f"{case.model} {case.scheme} x {case.concurrency}, {lengths}, {case.figure.removesuffix('_s')}"


def _threads_text(case: AnyCase) -> str:
    return "-" if isinstance(case, ForeignCase) else str(case.threads)


class Progress:
    """Says on standard error what was measured: a bar on a terminal, else one line per case."""

    def __init__(self, plan: RunPlan) -> None:
        self._total, self._done = len(plan.entries), 0
        self._bar = _progress_bar() if sys.stderr.isatty() else None
        self._task = None if self._bar is None else self._bar.add_task("cases", total=self._total)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, one: Measurement) -> None:
        """Report one finished case."""
        self._done += 1
        what = f"{one.library}/{one.kernel} {case_text(one.case)} x{_threads_text(one.case)}"
        text = plain(f"{what}: {_time_text(one)} {one.verdict}")
        if self._bar is None:
            click.echo(f"[{self._done}/{self._total}] {text}", err=True)
        else:
            self._bar.update(self._task, advance=1)
            self._bar.console.print(text, markup=False)


def _progress_bar() -> Any:
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True, markup=False, highlight=False, emoji=False)
    return rich.progress.Progress(console=console)


def _time_text(one: Measurement) -> str:
    return "-" if one.summary is None else format_seconds(one.summary.median_s)


def print_plan(request: Request, plan: RunPlan, *, as_json: bool) -> None:
    """Print what would be measured and what it costs."""
    cost = plan_cost(plan, request.hardware, request.rule, request.repeat)
    limit_bytes = memory_limit_bytes(request.question, request.hardware)
    if as_json:
        cases = [{"candidate": one.candidate, "case": case_text(one.case), "key": one.key} for one in plan.entries]
        print_json({"cases": cases, "skipped": plan.skipped, "cost": cost, "memory_limit_bytes": limit_bytes}, "plan")
        return
    blocks = [
        (
            case_text(block[0].case).split(" ", 1)[1],
            _threads_text(block[0].case),
            str(len(block)),
            ", ".join(dict.fromkeys(f"{one.kernel.library}/{one.kernel.name}" for one in block)),
        )
        for block in plan.blocks
    ]
    if blocks:
        print_table(Table(("measured in turns", "threads", "kernels", "which"), blocks, right=(1, 2)))
    _print_skipped(plan.skipped)
    print_line()
    print_line(
        f"{len(plan.entries)} cases of {len(plan.candidates)} kernels; about {format_seconds(cost.seconds)}; up to "
        f"{format_gib(min(cost.memory_bytes, limit_bytes))} of memory."
    )
    if cost.memory_bytes > limit_bytes:
        print_line(
            f"The largest block would take {format_gib(cost.memory_bytes)} at once, so that its kernels are measured "
            "in groups."
        )


def _print_skipped(skipped: tuple[Skipped, ...]) -> None:
    if skipped:
        print_line()
        print_table(Table(("not measured", "because"), [(one.what, one.reason) for one in skipped]))


def print_run(run: Run, *, as_json: bool) -> None:
    """Print the rows of a run with what was predicted of them, and what was not measured."""
    if as_json:
        rows = [measurement_json(one) for one in run.measurements]
        print_json({"run": run.head, "measurements": rows, "warnings": run.warnings}, "run")
        return
    if run.measurements:
        print_table(_run_table(run))
    _print_reasons(run)
    _print_differing(run)
    _print_soak(run)
    _print_skipped(run.head.skipped)
    valid = sum(one.is_valid for one in run.measurements)
    print_line()
    cases = "1 case" if len(run.measurements) == 1 else f"{len(run.measurements)} cases"
    print_line(f"{cases}: {valid} valid; {run.head.state}.")


def _print_soak(run: Run) -> None:
    """Print how cases under long load changed, by tenths of it."""
    measured = [one for one in run.measurements if one.summary] if run.head.settings.get("soak_s") else []
    rows = [
        (
            case_text(one.case) if not number else "",
            format_seconds(part.begin_s),
            format_seconds(part.median_s),
            format_percent(soak_parts(one)[0].median_s / part.median_s),
            *(_or_dash(value, unit) for value, unit in (
                (part.sm_clock_hz and part.sm_clock_hz / 1e6, "MHz"), (part.power_watt, "W"),
                (part.temperature_celsius, "C"),
            )),
        )
        for one in measured
        for number, part in enumerate(soak_parts(one))
    ]  # fmt: skip
    if rows:
        print_line()
        headers = ("under load", "from", "median", "speed", "SM clock", "power", "temperature")
        print_table(Table(headers, rows, right=tuple(range(1, 7))))


def _or_dash(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.0f} {unit}"


def _run_table(run: Run) -> Table:
    hardware = run_hardware(run)
    beside = predicted_beside_seconds(run)
    predicted = zip(run.measurements, predicted_seconds(run), beside, strict=True)
    order = sorted(predicted, key=lambda row: _place(row[0]))
    noted, probed = any(one.kernel_note for one in run.measurements), bool(np.isfinite(beside).any())
    rows = [
        (
            case_text(one.case),
            _threads_text(one.case),
            one.library,
            one.kernel,
            *_figures(one, roof_fraction(one, hardware), seconds),
            *([_micro(beside_s)] if probed else []),
            str(one.verdict),
            *([one.kernel_note] if noted else []),
        )
        for one, seconds, beside_s in order
    ]
    headers = ("case", "threads", "library", "kernel", "median us", "+-", "of roof", "predicted us")
    more = (*(["with the memory beside it"] if probed else []), "verdict", *(["of the kernel"] if noted else []))
    return Table((*headers, *more), rows, right=(1, 4, 5, 6, 7, *([8] if probed else [])))


def _micro(seconds: float) -> str:
    return significant(seconds / MICRO) if math.isfinite(seconds) else "-"


def _print_reasons(run: Run) -> None:
    """Print why rows are not valid."""
    rows = [
        (f"{case_text(one.case)} {one.library}/{one.kernel}", reason.name, reason.evidence)
        for one in run.measurements
        for reason in one.verdict.reasons
    ]
    if rows:
        print_line()
        print_table(Table(("not valid", "reason", "evidence"), rows))


def _print_differing(run: Run) -> None:
    """Warn of rows whose processes disagree: their error bars are those of the processes."""
    rows = [
        (f"{case_text(one.case)} {one.library}/{one.kernel}", str(one.spread.process_count),
         significant(one.spread.low_s / MICRO), significant(one.spread.high_s / MICRO),
         format_percent(one.spread.half_width_fraction))
        for one in run.measurements
        if one.spread is not None and one.spread.differs
    ]  # fmt: skip
    if rows:
        headers = ("processes differ by more than chance", "processes", "fastest us", "slowest us", "+-")
        print_line()
        print_table(Table(headers, rows, right=(1, 2, 3, 4)))


def _place(one: Measurement) -> tuple[Any, ...]:
    """Return where a row stands: beside those of the same sizes, the faster first."""
    sizes = [value for value in to_plain(one.case).values() if isinstance(value, int)]
    seconds = math.inf if one.summary is None or one.is_invalid else one.summary.median_s
    return (type(one.case).__name__, sizes, seconds)


def _figures(one: Measurement, roof: float | None, predicted_s: float) -> tuple[str, str, str, str]:
    """Return the cells of numbers; a row that is invalid shows no speed."""
    predicted = _micro(predicted_s)
    if one.summary is None or one.is_invalid:
        return "-", "-", "-", predicted
    return (
        significant(one.summary.median_s / MICRO),
        "-" if one.half_width_fraction is None else format_percent(one.half_width_fraction),
        "-" if roof is None else format_percent(roof),
        predicted,
    )
