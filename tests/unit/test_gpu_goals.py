"""What scripts/gpu_goals.py says of a run: shares, comparisons and crossovers whose answers are known."""

import sys
from pathlib import Path

import pandas
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def goals(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in ("gpu_goals", "gpu_predictions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import gpu_goals

    return gpu_goals


def row(library: str, kernel: str, m: int, measured_s: float, **more: object) -> dict[str, object]:
    return {"op": "gemm", "library": library, "kernel": kernel, "scheme": "W4A16-g128", "m": m, "n": 4096, "k": 4096,
            "measured_s": measured_s, "read_bytes": 8.0e6, **more}  # fmt: skip


def test_a_share_is_bytes_over_seconds_over_the_measured_bandwidth(goals):
    frame = pandas.DataFrame([row("codesign-0.1.0", "w4a16_gemm", m, s) for m, s in ((1, 2.49e-6), (16, 4e-6))])
    good = goals.share_goal("x", frame, 4e12)
    assert (good.found, good.reached) == ("50% (M 16, 4096 x 4096) to 80%; 1 of 2 cases", False)
    assert goals.share_goal("x", frame[:1], 4e12).reached
    assert goals.share_goal("x", frame[:0], 4e12).reached is None
    assert goals.share_goal("x", frame, 0.0).reached is None


@pytest.mark.parametrize(("theirs_s", "reached"), [(3.9e-6, True), (3.7e-6, False)])
def test_beside_marlin_95_percent_are_enough(goals, theirs_s, reached):
    frame = pandas.DataFrame([row("codesign-0.1.0", "w4a16_gemm", 1, 4e-6), row("vllm-0.33", "marlin", 1, theirs_s)])
    assert goals.against_goal(frame, "marlin", 0.95).reached is reached
    assert goals.against_goal(frame, "machete", 0.95).reached is None


@pytest.mark.parametrize(("fused_s", "reached"), [(10e-6, True), (10.3e-6, False)])
def test_many_rows_are_compared_with_the_faster_alternative(goals, fused_s, reached):
    frame = pandas.DataFrame([
        row("codesign-0.1.0", "triton", 64, fused_s), row("codesign-0.1.0", "w4a16_gemm", 64, 30e-6),
        row("codesign-0.1.0", "dequantize_mm", 64, 10e-6), row("torch-2.11", "linear", 64, 20e-6, scheme="FP16"),
        row("torch-2.11", "linear", 64, 1e-6, scheme="BF16"), row("codesign-0.1.0", "triton", 512, 1.0),
    ])  # fmt: skip
    assert goals.many_rows_goal(frame).reached is reached


def test_a_crossover_lies_between_measured_rows(goals):
    from gpu_predictions import crossover, crossover_errors

    times = {64: (1.0, 2.0), 128: (2.0, 2.0), 256: (8.0, 4.0)}
    ours = pandas.DataFrame([row("codesign-0.1.0", "triton", m, s[0], fitted_s=s[0] / 1.5) for m, s in times.items()])
    plain = pandas.DataFrame([
        row("torch-2.11", "linear", m, s[1], fitted_s=s[1], scheme="FP16") for m, s in times.items()
    ])  # fmt: skip
    assert crossover(ours, plain, "measured_s") == pytest.approx(128.0)
    assert crossover(plain, ours, "measured_s") is None
    predicted = crossover(ours, plain, "fitted_s")
    assert predicted == pytest.approx(128 * 2 ** (0.405465 / 0.693147), rel=1e-4)
    assert crossover_errors(pandas.concat([ours, plain]), ("triton",)) == [pytest.approx(predicted / 128 - 1)]


def test_a_folder_without_runs_measured_nothing(goals, tmp_path):
    assert {one.reached for one in goals.goals(tmp_path)} == {None}
    assert "not measured" in goals.page(tmp_path)
