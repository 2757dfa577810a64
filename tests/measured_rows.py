"""Rows of the profiler with known times, and the head of a run."""

from typing import Any

from codesign.profiler.check import Check
from codesign.profiler.kernel import GemmCase
from codesign.profiler.records import Measurement, Procedure, record_key
from codesign.profiler.run_folder import RunHead
from codesign.profiler.statistics import summarize
from codesign.profiler.verdict import Conditions, Kind, Verdict

CRITICAL = {"processor": "x"}


def gemm_row(
    median_s: float, m: int = 1, *, n: int = 4096, k: int = 4096, scheme: str = "BF16", **more: Any
) -> Measurement:
    """Return a valid row of a multiplication whose samples lie closely around a time."""
    library, kernel, threads = more.pop("library", "torch"), more.pop("kernel", "mm"), more.pop("threads", 1)
    case = GemmCase(scheme, m, n, k, threads)
    samples_s = tuple(median_s * (1 + i * 1e-4) for i in range(-15, 16))
    return Measurement(
        key=record_key(library, "2.7.0", kernel, case, CRITICAL),
        hw="epyc-9654",
        library=library,
        library_version="2.7.0",
        kernel=kernel,
        case=case,
        samples_s=samples_s,
        summary=summarize(samples_s),
        read_bytes=2.0 * n * k,
        flop=case.flop,
        math_dtype="bf16",
        check=Check(1e-3, 2e-3, True),
        procedure=Procedure("2026-01-01T00:00:00+00:00", (0,), 4, None, (31,), {}),
        conditions=Conditions(),
        verdict=more.pop("verdict", Verdict(Kind.VALID)),
    )


def run_head(**changes: Any) -> RunHead:
    """Return the head of a run, with some fields replaced."""
    fields: dict[str, Any] = {
        "format_version": 1,
        "codesign_version": "0.1.0",
        "commit": "",
        "command": "codesign profile",
        "hw": "epyc-9654",
        "seed": 0,
        "settings": {"batches": [1]},
        "critical": CRITICAL,
        "environment": {"cpu": {"model": "x", "governor": {"value": None, "why": "no cpufreq"}}},
        "candidates": ("torch/mm BF16 x1",),
        "skipped": (),
        "started_utc": "2026-01-01T00:00:00+00:00",
        "state": "running",
    }
    return RunHead(**{**fields, **changes})
