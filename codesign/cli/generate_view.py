"""What a generating model did, in a few lines."""

from codesign.cli.output import print_line
from codesign.profiler.records import Measurement, ServingCase
from codesign.profiler.run_folder import Run
from codesign.profiler.statistics import Percentile
from codesign.units import format_gib, format_percent, format_seconds, significant


def print_generation(run: Run) -> None:
    """Print first token, further tokens with their percentiles, tokens per second, memory and the check of logits."""
    rows = {one.case.figure: one for one in run.measurements if isinstance(one.case, ServingCase)}
    first, further = rows["ttft_s"], rows["tpot_s"]
    print_line()
    print_line(f"First token after {_measured(first)}; further ones every {_measured(further)}.")
    summary = further.summary
    assert summary is not None
    parts = {"p50": Percentile(summary.median_s), "p90": summary.p90, "p95": summary.p95, "p99": summary.p99}
    told = ", ".join(f"{name} {_percentile(one)}" for name, one in parts.items())
    print_line(f"Between tokens: {told}; {significant(1 / summary.median_s)} tokens per second.")
    notes, check = further.procedure.notes, further.check
    peak_bytes = notes["peak_memory_bytes"]
    print_line(f"Peak memory: {'not told by this system' if peak_bytes is None else format_gib(peak_bytes)}.")
    assert check is not None
    assert check.error_fraction is not None
    found, allowed = format_percent(check.error_fraction), format_percent(check.allowed_fraction)
    print_line(
        f"Logits differ from those of the unreplaced model in float32 by {found} of their norm ({allowed} is allowed), "
        f"at most {notes['logits_max_difference']:.3g}."
    )


def _measured(one: Measurement) -> str:
    predicted_s = one.procedure.notes.get("predicted_s")
    assert one.summary is not None
    text = format_seconds(one.summary.median_s)
    return f"{text} ({'nothing' if predicted_s is None else format_seconds(predicted_s)} was predicted)"


def _percentile(one: Percentile) -> str:
    return f"unknown ({one.why})" if one.value_s is None else format_seconds(one.value_s)
