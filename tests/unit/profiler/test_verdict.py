import random
from dataclasses import replace

import pytest
from fake_clock import FakeClock

from codesign.codec import from_plain, to_plain
from codesign.profiler.load import LoadChange
from codesign.profiler.statistics import summarize
from codesign.profiler.timing import Sampling, StopReason, Timer, Work, take_round, warm_up
from codesign.profiler.verdict import Ceilings, Conditions, Kind, Verdict, judge

CALL_S = 1e-3
SUMMARY = summarize([CALL_S * (1 + 1e-4 * (i % 7)) for i in range(40)])
WELL = Conditions(stop_reason=StopReason.CI)
QUIET = LoadChange(1.0, 0.0, 0.0, 0.0, 0.0, 0.1)
CEILINGS = Ceilings(read_bytes=30e6, flop=50e9, bytes_per_s=33e9, flop_per_s=113e12)


def names(verdict: Verdict) -> list[str]:
    return [reason.name for reason in verdict.reasons]


def test_a_good_row_is_valid():
    assert judge(SUMMARY, replace(WELL, load=QUIET), CEILINGS) == Verdict(Kind.VALID)


@pytest.mark.parametrize(
    ("ceilings", "verdict"),
    [
        (Ceilings(1.40 * 33e6, 0.0, bytes_per_s=33e9), "invalid(impossible)"),
        (Ceilings(1.04 * 33e6, 0.0, bytes_per_s=33e9), "valid"),
        (Ceilings(0.0, 1.40 * 113e9, flop_per_s=113e12), "invalid(impossible)"),
        (Ceilings(0.0, 1.04 * 113e9, flop_per_s=113e12), "valid"),
        (Ceilings(1e15, 1e18), "valid"),
    ],
)
def test_faster_than_the_machine_is_impossible(ceilings, verdict):
    assert str(judge(summarize([CALL_S] * 40), WELL, ceilings)) == verdict


@pytest.mark.parametrize(
    ("probed", "read_bytes", "verdict"),
    [
        ((36e9, 37e9, 35e9), 33e6, "valid"),
        ((36e9, 53e9, 35e9), 33e6, "suspect(memory_moved)"),
        ((36e9, 53e9, 35e9), 5e6, "valid"),  # arithmetic takes the time
        ((), 33e6, "valid"),
    ],
)
def test_memory_that_changed_meanwhile_makes_a_row_that_reads_suspect(probed, read_bytes, verdict):
    assert str(judge(SUMMARY, WELL, replace(CEILINGS, read_bytes=read_bytes, probed_bytes_per_s=probed))) == verdict


def test_the_impossible_says_how_much():
    reason = judge(summarize([CALL_S] * 40), WELL, Ceilings(1.4 * 33e6, 0.0, bytes_per_s=33e9)).reasons[0]
    assert reason.evidence == "46.2 GB/s is 1.40x the nominal 33 GB/s"


@pytest.mark.parametrize(
    ("changed", "verdict", "evidence"),
    [
        ({"gpu_events": ("hw_thermal_slowdown",), "clock_fraction": 0.6}, "invalid(throttled)", "mean clock 60 %"),
        ({"gpu_events": ("sw_power_cap",), "clock_fraction": 0.9}, "suspect(power_capped)", "mean clock 90 %"),
        ({"gpu_events": ("gpu_idle", "applications_clocks")}, "valid", ""),
        ({"gpu_other_processes": 2}, "suspect(contention)", "2 other processes on the GPU"),
        ({"clock_gaps": 1}, "invalid(clock_gap)", "1 samples"),
        ({"output_error": "3 of 4096 outputs are beyond tolerance"}, "invalid(wrong_output)", "3 of 4096"),
        ({"failure": "the process died by SIGSEGV"}, "invalid(failed)", "SIGSEGV"),
        ({"memory_error": "needs 9 GiB, 4 GiB are free"}, "invalid(oom)", "9 GiB"),
    ],
)
def test_each_condition_has_its_verdict(changed, verdict, evidence):
    found = judge(SUMMARY, replace(WELL, **changed), CEILINGS)
    assert str(found) == verdict
    assert all(evidence in reason.evidence for reason in found.reasons)


@pytest.mark.parametrize(
    ("changed", "evidence"),
    [
        ({"other_cpu_count": 0.5}, "other processes used 0.50 processors"),
        ({"stolen_cpu_count": 0.1}, "the host took 0.10 processors away"),
        ({"waiting_fraction": 0.2}, "our threads waited for a processor 20.0% of the time"),
        ({"involuntary_switches_per_s": 900.0}, "900 involuntary switches per second"),
    ],
)
def test_a_busy_machine_is_contention_with_its_evidence(changed, evidence):
    found = judge(SUMMARY, replace(WELL, load=replace(QUIET, **changed)), CEILINGS)
    assert str(found) == "suspect(contention)"
    assert found.reasons[0].evidence == evidence


def test_an_unknown_load_is_no_contention():
    assert judge(SUMMARY, replace(WELL, load=LoadChange(1.0, 0.0)), CEILINGS).kind is Kind.VALID


def test_few_samples_and_an_unstable_median_are_told_apart():
    generator = random.Random(0)
    wide = summarize([generator.lognormvariate(0, 1) for _ in range(60)])
    budget = Conditions(stop_reason=StopReason.BUDGET)
    assert names(judge(wide, budget, Ceilings(0, 0))) == ["unstable"]
    assert names(judge(wide, WELL, Ceilings(0, 0))) == []
    assert names(judge(summarize([1.0, 1.1, 1.2]), budget, Ceilings(0, 0))) == ["few_samples"]


def test_a_row_without_samples_is_invalid_for_one_reason():
    assert str(judge(None, Conditions(), CEILINGS)) == "invalid(no_samples)"
    assert str(judge(None, Conditions(output_error="one element is wrong"), CEILINGS)) == "invalid(wrong_output)"
    assert str(judge(None, Conditions(failure="exit 1"), CEILINGS)) == "invalid(failed)"


def test_all_reasons_are_kept_and_the_worst_counts():
    busy = replace(WELL, clock_gaps=2, gpu_events=("sw_power_cap", "hw_slowdown"), gpu_other_processes=1)
    found = judge(SUMMARY, busy, CEILINGS)
    assert found.kind is Kind.INVALID
    assert names(found) == ["throttled", "clock_gap", "power_capped", "contention"]


def test_verdict_and_conditions_round_trip_through_plain_values():
    conditions = replace(WELL, load=QUIET, gpu_events=("sw_power_cap",))
    found = judge(SUMMARY, conditions, CEILINGS)
    assert from_plain(Verdict, to_plain(found), "record") == found
    assert from_plain(Conditions, to_plain(conditions), "record") == conditions


def test_ten_seconds_of_thermal_throttling_end_as_an_invalid_row_in_time():
    clock = FakeClock(0.0)

    def run(_copy: int) -> None:
        slow = 2.0 <= clock.now_s() < 12.0
        clock.pass_s(CALL_S / (0.6 if slow else 1.0))
        events.update({"hw_thermal_slowdown"} if slow else {"gpu_idle"})

    events: set[str] = set()
    timer = Timer(Work(run), clock)
    sampling = Sampling(warm_up(timer))
    clock.time_s = 1.99
    while sampling.stop_reason() is None:
        sampling = sampling.add(take_round(timer, sampling.found, sampling.next_sample_count()))
    conditions = Conditions(sampling.stop_reason(), gpu_events=tuple(sorted(events)), clock_fraction=0.6)
    found = judge(sampling.summary(), conditions, Ceilings(0, 0))
    assert str(found).startswith("invalid(throttled")
    assert clock.now_s() < 20
    assert "NaN" not in repr(sampling.summary())
    assert len(sampling.samples_s) == sampling.summary().sample_count
