import gc
import random

import pytest
from fake_clock import FakeClock

from codesign.errors import MeasurementError
from codesign.profiler.timing import (
    DEFAULT_RULE,
    MonotonicClock,
    Rule,
    Sampling,
    StopReason,
    Timer,
    WarmUp,
    Work,
    take_round,
    warm_up,
)


def simulated(clock: FakeClock, call_s, copies: int = 1, flush_s: float | None = None) -> Work:
    """Return work whose n-th call takes call_s(n) seconds."""
    calls = iter(range(10**9))
    flush = None if flush_s is None else (lambda: clock.pass_s(flush_s))
    return Work(lambda copy: clock.pass_s(call_s(next(calls))), copies, flush)


def measure(work: Work, clock: FakeClock, rule: Rule = DEFAULT_RULE) -> Sampling:
    timer = Timer(work, clock)
    sampling = Sampling(warm_up(timer, rule), rule)
    while sampling.stop_reason() is None:
        sampling = sampling.add(take_round(timer, sampling.found, sampling.next_sample_count()))
    return sampling


def test_the_interval_covers_the_true_median_and_stops_in_time():
    covered = stopped_on_ci = 0
    runs = 2000
    for seed in range(runs):
        clock, generator = FakeClock(), random.Random(seed)
        timer = Timer(simulated(clock, lambda _, g=generator: 2e-3 * g.gauss(1.0, 0.01)), clock)
        sampling = Sampling(WarmUp(0.1, 50, True, 2e-3, 1))
        while sampling.stop_reason() is None:
            sampling = sampling.add(take_round(timer, sampling.found, sampling.next_sample_count()))
        summary = sampling.summary()
        covered += summary.ci_low_s <= 2e-3 <= summary.ci_high_s
        stopped_on_ci += sampling.stop_reason() is StopReason.CI
    assert 0.93 <= covered / runs <= 0.97
    assert stopped_on_ci / runs >= 0.95


def test_noise_takes_more_samples_until_the_interval_is_narrow():
    clock, generator = FakeClock(), random.Random(1)
    sampling = measure(simulated(clock, lambda _: 2e-3 * generator.gauss(1.0, 0.05)), clock)
    summary = sampling.summary()
    assert sampling.stop_reason() is StopReason.CI
    assert 60 < summary.sample_count < 400
    assert summary.ci_half_width_fraction <= 0.01


def test_too_much_noise_ends_at_the_budget():
    clock, generator = FakeClock(), random.Random(2)
    rule = Rule(budget_s=1.0)
    sampling = measure(simulated(clock, lambda _: 2e-3 * generator.lognormvariate(0.0, 1.0)), clock, rule)
    assert sampling.stop_reason() is StopReason.BUDGET
    assert sampling.summary().ci_half_width_fraction > 0.01
    assert 0.9 < sampling.spent_s <= 1.1
    assert max(one.spent_s for one in sampling.rounds) < 0.8
    assert len(sampling.rounds) > 5


def test_at_least_five_rounds_and_thirty_samples():
    clock = FakeClock()
    sampling = measure(simulated(clock, lambda _: 2e-3), clock)
    assert sampling.stop_reason() is StopReason.CI
    assert len(sampling.rounds) == 5
    assert [len(one.samples_s) for one in sampling.rounds] == [6] * 5


@pytest.mark.parametrize(("call_s", "rounds", "samples"), [(1.0, 5, 15), (4.0, 3, 3), (60.0, 1, 1)])
def test_a_slow_kernel_is_bounded_by_the_budget(call_s, rounds, samples):
    clock = FakeClock()
    sampling = measure(simulated(clock, lambda _: call_s), clock)
    assert sampling.stop_reason() is StopReason.BUDGET
    assert (len(sampling.rounds), len(sampling.samples_s)) == (rounds, samples)
    assert sampling.spent_s <= max(15.0, call_s)


def test_short_calls_are_gathered_into_a_millisecond():
    clock = FakeClock()
    timer = Timer(simulated(clock, lambda n: 5e-3 if n == 0 else 5e-6), clock)
    found = warm_up(timer)
    assert found.calls_per_sample == 200
    one = take_round(timer, found, 3)
    assert one.samples_s == pytest.approx([5e-6] * 3)
    assert one.spent_s == pytest.approx(3e-3)


def test_long_calls_are_samples_of_their_own():
    clock = FakeClock()
    assert warm_up(Timer(simulated(clock, lambda _: 1.5e-3), clock)).calls_per_sample == 1


def test_a_flush_comes_before_every_call_and_is_not_timed():
    clock = FakeClock()
    timer = Timer(simulated(clock, lambda _: 5e-6, flush_s=1e-3), clock)
    found = warm_up(timer)
    assert found.calls_per_sample == 1
    one = take_round(timer, found, 4)
    assert one.samples_s == pytest.approx([5e-6] * 4)
    assert one.spent_s == pytest.approx(4 * (1e-3 + 5e-6))


def test_copies_are_read_in_turn():
    clock, seen = FakeClock(), []

    def run(copy: int) -> None:
        seen.append(copy)
        clock.pass_s(0.4e-3)

    timer = Timer(Work(run, copies=3), clock)
    take_round(timer, WarmUp(0.1, 9, True, 0.4e-3, 4), 2)
    assert seen == [0, 1, 2, 0, 1, 2, 0, 1]


def test_warm_up_ends_when_three_blocks_agree_and_a_tenth_of_a_second_is_over():
    clock = FakeClock()
    found = warm_up(Timer(simulated(clock, lambda _: 2e-3), clock))
    assert found.settled
    assert found.spent_s == pytest.approx(0.12)
    assert found.call_count == 60
    quick = warm_up(Timer(simulated(clock, lambda _: 1e-3), clock))
    assert quick.spent_s == pytest.approx(0.1)


def test_warm_up_waits_for_a_clock_that_rises():
    clock = FakeClock()
    found = warm_up(Timer(simulated(clock, lambda n: 2e-3 if n > 300 else 4e-3 - n * 5e-6), clock))
    assert found.settled
    assert found.call_s == pytest.approx(2e-3)
    assert 0.9 < found.spent_s < 1.3


def test_warm_up_gives_up_after_two_seconds_and_says_so():
    clock = FakeClock()
    found = warm_up(Timer(simulated(clock, lambda n: 1e-3 * 1.001**n), clock))
    assert not found.settled
    assert 2.0 <= found.spent_s < 2.1


@pytest.mark.parametrize(("call_s", "calls"), [(0.3, 7), (30.0, 1)])
def test_warm_up_of_slow_calls_is_as_short_as_it_can_be(call_s, calls):
    clock = FakeClock()
    found = warm_up(Timer(simulated(clock, lambda _: call_s), clock))
    assert (found.call_count, found.settled) == (calls, False)
    assert found.call_s == pytest.approx(call_s)


def test_a_jump_of_the_clock_marks_its_sample_only():
    clock = FakeClock()
    timer = Timer(simulated(clock, lambda n: 5.0 if n == 2 else 2e-3), clock)
    one = take_round(timer, WarmUp(0.1, 50, True, 2e-3, 1), 6)
    assert one.gaps == (2,)
    assert Sampling(WarmUp(0.1, 50, True, 2e-3, 1)).add(one).gap_count == 1


@pytest.mark.parametrize(("call_s", "gap"), [(0.9, False), (1.1, True)])
def test_a_gap_is_more_than_a_second_beyond_the_expected(call_s, gap):
    clock = FakeClock()
    one = take_round(Timer(simulated(clock, lambda _: call_s), clock), WarmUp(0.1, 50, True, 2e-3, 1), 1)
    assert bool(one.gaps) == gap


def test_a_clock_that_goes_back_marks_the_sample():
    clock = FakeClock()
    one = take_round(Timer(simulated(clock, lambda _: -1.0), clock), WarmUp(0.1, 50, True, 2e-3, 1), 2)
    assert one.gaps == (0, 1)


def test_a_clock_that_stands_still_is_an_error_and_no_endless_loop():
    with pytest.raises(MeasurementError, match="stood still"):
        warm_up(Timer(Work(lambda copy: None), FakeClock()))


def test_real_calls_are_timed_by_the_monotonic_clock():
    calls = []
    rule = Rule(warm_up_min_s=0.0, warm_up_max_s=0.02, min_sample_s=1e-4, budget_s=0.05)
    sampling = measure(Work(calls.append, copies=2), MonotonicClock(), rule)
    assert sampling.stop_reason() is not None
    assert min(sampling.samples_s) > 0
    assert len(calls) == sampling.found.call_count + len(sampling.samples_s) * sampling.found.calls_per_sample
    assert set(calls) == {0, 1}


@pytest.mark.parametrize("before", [True, False])
def test_the_garbage_collector_waits_for_the_end_of_a_round(before):
    def run(_copy: int) -> None:
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise ValueError("the kernel failed")

    seen: list[bool] = []
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ValueError, match="kernel"):
            take_round(Timer(Work(run), FakeClock()), WarmUp(0.1, 50, True, 2e-3, 1), 5)
        assert seen == [False] * 3
        assert gc.isenabled() == before
    finally:
        gc.enable()
