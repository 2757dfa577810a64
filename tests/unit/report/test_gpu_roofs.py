"""The roofline of a GPU that ran below its highest clock has both ceilings: nominal, and at that clock."""

from dataclasses import replace

import pytest

from codesign.hardware.file import load_hardware
from codesign.profiler.export import frame_of
from codesign.profiler.verdict import Conditions
from codesign.report.run_charts import roofline_chart
from codesign.units import GIGA
from tests.measured_rows import gemm_row

HARDWARE = load_hardware("h200")


def roofs(clock_fraction: float | None) -> dict[str, float]:
    rows = [replace(gemm_row(1e-4, m, n=512), conditions=Conditions(clock_fraction=clock_fraction)) for m in (1, 4096)]
    lines = [one for one in roofline_chart(frame_of(tuple(rows)), HARDWARE).data if one.name == "fp16 roof"]
    return {one.line.dash: max(one.y) * GIGA for one in lines}


def test_the_ceiling_at_the_mean_clock_stands_beside_the_nominal_one():
    found = roofs(0.6)
    assert found["solid"] == pytest.approx(HARDWARE.peak_flop_per_s["fp16"], rel=1e-3)
    assert found["dot"] == pytest.approx(0.6 * HARDWARE.peak_flop_per_s["fp16"], rel=1e-3)


@pytest.mark.parametrize("clock_fraction", [1.0, None])
def test_a_full_or_unknown_clock_has_no_ceiling_of_its_own(clock_fraction):
    assert roofs(clock_fraction).keys() == {"solid", "dash"}
