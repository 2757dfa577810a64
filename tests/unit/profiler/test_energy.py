import random
from collections.abc import Callable

import pytest
from fake_clock import FakeClock

from codesign.errors import MeasurementError
from codesign.profiler.energy import EnergySource, energy_of_calls, idle_watt, measure_energy
from codesign.profiler.reading import Reading, absent
from codesign.profiler.timing import Timer, WarmUp, Work

UNSUPPORTED = absent("NVML: not supported; fix: nothing")
REST = Reading(80.0)


def ticking(clock: FakeClock, watt: float, tick_s: float, phase_s: float = 0.0) -> EnergySource:
    """Return a device of constant power whose counter moves every tick."""
    return EnergySource("RAPL", lambda: Reading(1e6 + watt * tick_s * ((clock.time_s - phase_s) // tick_s)))


def calls_of(clock: FakeClock, call_s: float) -> Callable[[], None]:
    return lambda: clock.pass_s(call_s)


@pytest.mark.parametrize("tick_s", [0.02, 0.1])
def test_a_window_of_five_seconds_is_right_to_two_percent(tick_s):
    generator = random.Random(0)
    for _ in range(50):
        clock, call_s = FakeClock(), generator.uniform(1e-3, 9e-3)
        source = ticking(clock, 300.0, tick_s, generator.uniform(0, tick_s))
        energy = measure_energy(calls_of(clock, call_s), source, clock, REST).value
        assert energy.gross_joule_per_call == pytest.approx(300.0 * call_s, rel=0.02)
        assert energy.net_joule_per_call == pytest.approx(220.0 * call_s, rel=0.03)
        assert 5.0 <= energy.window_s < 5.3


def test_steps_at_both_ends_beat_a_window_that_ignores_them():
    clock = FakeClock()
    source = ticking(clock, 300.0, 0.1, 0.037)
    energy = measure_energy(calls_of(clock, 1e-3), source, clock, REST).value
    assert energy.gross_joule / energy.window_s == pytest.approx(300.0, rel=1e-3)


def test_a_short_window_is_refused_with_the_needed_duration():
    clock = FakeClock()
    with pytest.raises(MeasurementError, match=r"0.05 s is too short.*needs 5 s"):
        measure_energy(calls_of(clock, 1e-3), ticking(clock, 300.0, 0.1), clock, REST, window_s=0.05)


def test_without_a_counter_energy_is_absent_with_the_reason():
    clock, calls = FakeClock(), []
    energy = measure_energy(lambda: calls.append(0), EnergySource("RAPL", lambda: UNSUPPORTED), clock, REST)
    assert energy == UNSUPPORTED
    assert not calls


@pytest.mark.parametrize(
    ("counter", "reason"),
    [(lambda s: 1e6 + 100 * s if s < 103 else 50 + 100 * s, "backwards"), (lambda s: 7.0, "did not move")],
)
def test_a_counter_that_cannot_be_right_gives_no_energy(counter, reason):
    clock = FakeClock()
    source = EnergySource("RAPL", lambda: Reading(counter(clock.time_s)))
    energy = measure_energy(calls_of(clock, 0.01), source, clock, REST)
    assert energy.value is None
    assert reason in energy.why


@pytest.mark.parametrize("lost_at_s", [100.0, 100.05, 103.0, 105.4])
def test_a_counter_that_is_lost_on_the_way_gives_its_reason(lost_at_s):
    clock = FakeClock()
    source = EnergySource("RAPL", lambda: absent("lost") if clock.time_s >= lost_at_s else Reading(clock.time_s // 0.5))
    assert measure_energy(calls_of(clock, 0.001), source, clock, REST) == absent("lost")
    assert clock.time_s == pytest.approx(lost_at_s if lost_at_s != 103.0 else 105.25, abs=0.01)


def test_power_at_rest_is_measured_the_same_way():
    clock = FakeClock()
    assert idle_watt(ticking(clock, 75.0, 0.1), clock, clock.pass_s).value == pytest.approx(75.0, rel=0.01)
    assert idle_watt(EnergySource("RAPL", lambda: UNSUPPORTED), clock, clock.pass_s) == UNSUPPORTED


def test_net_energy_needs_the_power_at_rest():
    clock = FakeClock()
    energy = measure_energy(calls_of(clock, 0.01), ticking(clock, 300.0, 0.1), clock, absent("not measured")).value
    assert energy.net_joule_per_call is None
    assert energy.idle_why == "not measured"
    assert energy.gross_joule_per_call > 0


def test_calls_of_a_kernel_are_counted_one_by_one_though_they_run_in_samples():
    clock = FakeClock()
    timer = Timer(Work(lambda _: clock.pass_s(1e-4)), clock)
    energy = energy_of_calls(timer, WarmUp(0.1, 10, True, 1e-4, 10), ticking(clock, 300.0, 0.1), REST).value
    assert energy.gross_joule_per_call == pytest.approx(0.03, rel=0.02)
    assert energy.call_count == pytest.approx(50_000, rel=0.06)


def test_energy_with_emptied_caches_is_refused():
    clock = FakeClock()
    timer = Timer(Work(lambda _: clock.pass_s(1e-4), 1, lambda: None), clock)
    found = energy_of_calls(timer, WarmUp(0.1, 10, True, 1e-4, 1), ticking(clock, 300.0, 0.1), REST)
    assert (found.value, "emptying the caches" in found.why) == (None, True)
