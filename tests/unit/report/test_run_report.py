import json
from pathlib import Path

import pytest
from measured_rows import gemm_row, run_head

from codesign.errors import InputError
from codesign.profiler.records import Measurement
from codesign.profiler.run_folder import Run, Skipped
from codesign.profiler.verdict import Kind, Reason, Verdict
from codesign.report.run_gains import Gain, break_even
from codesign.report.run_page import write_run_page
from codesign.report.run_report import run_report

BAD = Verdict(Kind.INVALID, (Reason("wrong_output", "off by 1"),))


def a_run(rows: list[Measurement], folder: Path, **head: object) -> Run:
    return Run(folder, run_head(hw="x86-avx512", **head), tuple(rows), ())


def rows() -> list[Measurement]:
    """Return BF16 and W8A8 kernels of one layer: W8A8 pays at one row and no longer at 64."""
    found = []
    for m, base_s, few_s in ((1, 1e-3, 0.5e-3), (16, 1.5e-3, 1.2e-3), (64, 4e-3, 5e-3)):
        found += [
            gemm_row(base_s, m), gemm_row(2 * base_s, m, kernel="slow"),
            gemm_row(few_s, m, scheme="W8A8", kernel="dynamic"),
        ]  # fmt: skip
    return found


def test_gains_compare_the_fastest_kernels(tmp_path):
    report = run_report(a_run(rows(), tmp_path))
    measured = {gain.m: gain.measured for gain in report.gains}
    assert measured == pytest.approx({1: 2.0, 16: 1.25, 64: 0.8})
    assert {row.kernel for row in report.layers} == {"mm", "dynamic"}
    base = [row.gain for row in report.layers if row.scheme == "BF16"]
    assert base == [1.0, 1.0, 1.0]


def test_a_gain_ends_where_the_curve_crosses_one():
    def gain(m: int, measured: float) -> Gain:
        return Gain("W8A8", 1, m, measured, None, 1)

    assert break_even([gain(1, 2.0), gain(4, 0.5)]) == pytest.approx(2.0)  # halfway on logarithmic axes
    assert break_even([gain(1, 2.0), gain(4, 1.5)]) is None
    assert break_even([gain(1, 0.5), gain(4, 0.4)]) is None


def test_the_page_states_verdict_break_even_and_what_was_left_out(tmp_path):
    run = a_run([*rows(), gemm_row(1e-3, 4, scheme="FP8", verdict=BAD)], tmp_path,
                skipped=(Skipped("openvino", "not installed <b>"),))  # fmt: skip
    page = tmp_path / "page.html"
    write_run_page(run, run_report(run), page)
    text = page.read_text()
    assert "W8A8 on 1 thread: 2x the speed of BF16 at 1 row, 0.8x at 64; it stops paying at about 32 rows." in text
    assert "9 valid, 1 invalid" in text
    assert "not installed &lt;b&gt;" in text
    assert "not complete: running" in text
    figures = json.loads(page.with_suffix(".json").read_text())
    assert figures["verdict_counts"] == {"valid": 9, "invalid": 1}
    assert len(figures["gains"]) == 3


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = a_run(rows(), tmp_path)
    for name in ("one.html", "other.html"):
        write_run_page(run, run_report(run), tmp_path / name)
    one, other = ((tmp_path / name).read_text() for name in ("one.html", "other.html"))
    assert one == other.replace("other.html", "one.html")


@pytest.mark.parametrize("scheme", ["BF16", "W8A8"])
def test_a_run_of_one_scheme_has_a_page_without_gains(tmp_path, scheme):
    run = a_run([gemm_row(1e-3, scheme=scheme)], tmp_path)
    report = run_report(run)
    write_run_page(run, report, tmp_path / "page.html")
    assert report.gains == ()


def test_an_empty_run_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match="nothing was measured yet"):
        run_report(a_run([], tmp_path))


def test_a_run_of_invalid_rows_only_is_refused_with_their_reasons(tmp_path):
    with pytest.raises(InputError, match="wrong_output"):
        run_report(a_run([gemm_row(1e-3, verdict=BAD)], tmp_path))


def test_shares_of_the_roof_are_of_the_threads_that_ran(tmp_path):
    frame = run_report(a_run([gemm_row(1e-3, 256), gemm_row(1e-3, 256, threads=8)], tmp_path)).frame
    one, eight = frame["roof_fraction"]
    assert one == pytest.approx(8 * eight, rel=0.3)
