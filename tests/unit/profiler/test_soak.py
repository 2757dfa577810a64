"""Minutes of load are told by tenths."""

from dataclasses import replace

import pytest
from fake_clock import FakeClock

from codesign.profiler.gpu_states import GpuRound, GpuSnapshot
from codesign.profiler.soak import one_by_one, soak_parts, soak_rule
from codesign.profiler.timing import Sampling, StopReason, Timer, WarmUp, Work, take_round
from tests.measured_rows import gemm_row
from tests.profile_plans import plan


def row(sizes, samples_s, gpu_rounds=()):
    one = gemm_row(1e-3)
    procedure = replace(one.procedure, round_sizes=sizes, warm_up=WarmUp(0.1, 100, True, 1e-3, 20))
    return replace(one, samples_s=samples_s, procedure=procedure, gpu_rounds=gpu_rounds)


def test_parts_are_tenths_of_the_rounds_with_what_the_gpu_did_in_each():
    hot = tuple(GpuRound(GpuSnapshot(), GpuSnapshot(temperature_celsius=50 + i), 1e9 - i, 300 + i) for i in range(20))
    parts = soak_parts(row((2,) * 20, tuple(1e-3 * (1 + i // 20) for i in range(40)), hot))
    assert [part.median_s for part in parts] == [1e-3] * 5 + [2e-3] * 5
    assert parts[1].begin_s == pytest.approx(20 * 4 * 1e-3)
    assert (parts[0].temperature_celsius, parts[9].power_watt, parts[9].sm_clock_hz) == (50.5, 318.5, 1e9 - 18.5)


def test_few_rounds_make_few_parts_and_a_cpu_says_nothing_of_itself():
    (first, second) = soak_parts(row((1, 3), (1e-3, 2e-3, 3e-3, 4e-3)))
    assert (first.median_s, second.median_s, second.power_watt) == (1e-3, 3e-3, None)
    assert soak_parts(row((), ())) == ()


def test_samples_are_taken_to_the_end_however_well_the_median_is_known():
    clock = FakeClock()
    timer = Timer(Work(lambda _: clock.pass_s(1e-3)), clock)
    sampling = Sampling(WarmUp(0.1, 100, True, 1e-3, 20), soak_rule(30.0))
    while sampling.stop_reason() is None:
        sampling = sampling.add(take_round(timer, sampling.found, sampling.next_sample_count()))
    assert sampling.stop_reason() is StopReason.BUDGET
    assert sampling.spent_s == pytest.approx(30.0, abs=0.1)
    assert len(sampling.samples_s) == pytest.approx(1500, abs=10)


def test_each_case_is_alone():
    what = plan(("fake",), (1, 2))
    assert [len(block) for block in one_by_one(what).blocks] == [1] * len(what.entries)
