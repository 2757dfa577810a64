"""Measurements as rows: the columns that `fit` and `validate` read, and more beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.cost.measured import FORMAT_VERSION, MeasuredTable, Rejection, check_measured, read_measured_table
from codesign.errors import InputError
from codesign.profiler.kernel import AttentionCase, BlockCase, GemmCase
from codesign.profiler.records import ForeignCase, Measurement, ServingCase
from codesign.profiler.run_folder import HARDWARE, Run, read_run
from codesign.profiler.store import HEAD

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, Any]


def _gemm_columns(case: GemmCase) -> Row:
    return {"op": "gemm", "scheme": case.scheme, "m": case.m, "n": case.n, "k": case.k, **_state(case)}


def _attention_columns(case: AttentionCase) -> Row:
    op = "attention_decode" if case.q_tokens == 1 else "attention_prefill"
    sizes = {name: getattr(case, name) for name in ("batch", "q_tokens", "kv_tokens", "heads", "kv_heads", "head_dim")}
    return {"op": op, "kv_dtype": case.kv_format, **sizes, **_state(case)}


def _state(case: GemmCase | AttentionCase) -> Row:
    return {"threads": case.threads, "cache": case.cache}


def _block_columns(case: BlockCase) -> Row:
    names = ("model", "scheme", "blocks", "batch", "context_tokens", "threads")
    return {"op": f"blocks_{case.phase}", "kv_dtype": case.kv_format, **{name: getattr(case, name) for name in names}}


def _serving_columns(case: ServingCase) -> Row:
    names = ("model", "scheme", "gpus", "concurrency", "prompt_tokens", "output_tokens", "threads")
    return {**{name: getattr(case, name) for name in names}, "kv_dtype": case.kv_format}


def _foreign_columns(case: ForeignCase) -> Row:
    return {"op": "foreign", "name": case.name}


CASE_COLUMNS: dict[type[Any], Callable[[Any], Row]] = {
    GemmCase: _gemm_columns,
    AttentionCase: _attention_columns,
    BlockCase: _block_columns,
    ServingCase: _serving_columns,
    ForeignCase: _foreign_columns,
}


# A model streams its weights between calls, and keeps the code that calls the kernels.
UNUSUAL_CACHES = {
    "hot": "the weights were hot in the cache",
    "cold": "all caches were emptied before each call, of weights and of code",
}


def row_of(one: Measurement) -> Row:
    """Return a measurement as one row; the library carries its version, as measured tables have it."""
    summary = one.summary
    measured_s = None if summary is None else summary.median_s
    figure = f"measured_{one.case.figure}" if isinstance(one.case, ServingCase) else "measured_s"
    return {
        "format_version": FORMAT_VERSION,
        "id": one.key,
        "hw": one.hw,
        "library": "-".join(filter(None, (one.library, one.library_version.split("+")[0]))),
        "kernel": one.kernel,
        "kernel_note": one.kernel_note,
        **CASE_COLUMNS[type(one.case)](one.case),
        figure: measured_s,
        "ci_low_s": None if one.interval_s is None else one.interval_s[0],
        "ci_high_s": None if one.interval_s is None else one.interval_s[1],
        "sample_count": len(one.samples_s),
        "process_count": 1 if one.spread is None else one.spread.process_count,
        "memory_gb_per_s": one.memory_gb_per_s,
        "clock_fraction": one.conditions.clock_fraction,
        "read_bytes": one.read_bytes,
        "flop": one.flop,
        "math_dtype": one.math_dtype,
        "gross_joule_per_call": None if one.energy is None else one.energy.gross_joule_per_call,
        "net_joule_per_call": None if one.energy is None else one.energy.net_joule_per_call,
        "error_fraction": None if one.check is None else one.check.error_fraction,
        "verdict": str(one.verdict.kind),
        "reasons": "; ".join(f"{reason.name}: {reason.evidence}" for reason in one.verdict.reasons),
    }


def frame_of(measurements: tuple[Measurement, ...]) -> "DataFrame":
    """Return all measurements as a table, valid or not."""
    import pandas

    return pandas.DataFrame([row_of(one) for one in measurements])


def read_measurements(source: str) -> MeasuredTable:
    """Return the measured table of a file, or the usable rows of a run directory."""
    folder = Path(source)
    if not folder.is_dir():
        return read_measured_table(source)
    if not (folder / HEAD).is_file():
        raise InputError(f"{folder}: neither a measured table nor a run directory, which has a {HEAD}.")
    return run_table(read_run(folder))


def run_table(run: Run) -> MeasuredTable:
    """Return the rows of a run that may be fitted; the others are rejected with reasons and their record's number."""
    numbered = tuple(enumerate(run.measurements, 1))
    reasons = {i: _fault(one) for i, one in numbered}
    used = [(i, one) for i, one in numbered if reasons[i] is None]
    if not used:
        told = "; ".join(sorted({str(reason) for reason in reasons.values()})[:5])
        raise InputError(f"{run.folder}: no row of this run can be used: {told or 'it has none'}.")
    frame = frame_of(tuple(one for _, one in used))
    frame["line"] = [i for i, _ in used]
    if (run.folder / HARDWARE).is_file():
        frame["hw"] = str(run.folder / HARDWARE)
    table = check_measured(frame, run.folder)
    left_out = [
        Rejection(reason, tuple(i for i, told in reasons.items() if told == reason))
        for reason in dict.fromkeys(told for told in reasons.values() if told is not None)
    ]
    return MeasuredTable(table.kind, table.frame, (*left_out, *table.rejections), len(numbered))


def _fault(one: Measurement) -> str | None:
    """Return why a row is not used."""
    if not one.is_valid:
        return f"the verdict is {one.verdict}"
    if isinstance(one.case, ForeignCase):
        return "a kernel of another tool without sizes that are known here"
    if isinstance(one.case, BlockCase):
        return "a step of several kernels"
    return UNUSUAL_CACHES.get(getattr(one.case, "cache", "rotating"))
