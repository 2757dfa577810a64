"""Joules of calls on a GPU from what telemetry saw of its counter beside them."""

import random
from dataclasses import replace

import pytest
from fake_clock import FakeClock
from fake_nvml import FakeNvml, first_device

from codesign.profiler.energy import COUNTER, INTEGRATED_POWER
from codesign.profiler.gpu_energy import WINDOW_S, Busy, energy_of_busy, keep_busy, mean_power
from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry_lines import GpuState
from codesign.profiler.timing import Timer, WarmUp, Work

BASE = first_device(FakeNvml()).state()
NOT_COUNTED = absent("NVML: not supported; fix: nothing")
BUSY = Busy(100.0, 105.5, 11_000)
States = list[tuple[float, GpuState]]


def at(joule: float | None, watt: float | None = None) -> GpuState:
    return replace(
        BASE,
        energy_joule=NOT_COUNTED if joule is None else Reading(joule),
        power_watt=absent("no power") if watt is None else Reading(watt),
    )


def sampled(watt: float, tick_s: float, phase_s: float, generator: random.Random) -> States:
    """Return readings every 45 to 60 ms of a counter that moves every tick."""
    found, now_s = [], BUSY.begin_s + generator.uniform(0, 0.05)
    while now_s <= BUSY.end_s:
        found.append((now_s, at(1e6 + watt * tick_s * ((now_s - phase_s) // tick_s))))
        now_s += generator.uniform(0.045, 0.060)
    return found


@pytest.mark.parametrize("tick_s", [0.02, 0.1])
def test_a_window_of_five_seconds_is_right_to_two_percent(tick_s):
    generator = random.Random(1)
    for _ in range(50):
        states = sampled(300.0, tick_s, generator.uniform(0, tick_s), generator)
        energy = energy_of_busy(BUSY, states, "gpu 0", Reading(80.0)).value
        assert (energy.method, energy.source, energy.call_count) == (COUNTER, "gpu 0", 11_000)
        assert energy.gross_joule_per_call == pytest.approx(300.0 * 5e-4, rel=0.02)
        assert energy.net_joule_per_call == pytest.approx(220.0 * 5e-4, rel=0.03)


def test_without_a_counter_power_is_integrated_and_labelled():
    states = [(100.0 + 0.1 * i, at(None, 100.0 + i)) for i in range(56)]
    power = mean_power(states).value
    assert (power.watt, power.method) == (pytest.approx(127.5), INTEGRATED_POWER)


@pytest.mark.parametrize(
    ("states", "why"),
    [
        ([], "telemetry saw nothing of the window"),
        ([(100.0 + 0.1 * i, at(None)) for i in range(56)], "not supported"),
        ([(100.0 + 0.1 * i, at(7.0)) for i in range(56)], "did not move"),
        ([(100.0 + 0.1 * i, at(900.0 + i if i < 30 else 50.0 + i)) for i in range(56)], "went backwards"),
        ([(100.0 + 0.1 * i, at(900.0 + i)) for i in range(32)], "telemetry saw 3.0 s of the window, 5 s are needed"),
        ([(100.0 + 0.1 * i, at(None, 300.0)) for i in range(32)], "telemetry saw 3.1 s of the window"),
        ([(100.0, at(None, 300.0))], "telemetry saw 0.0 s of the window"),
    ],
)
def test_what_cannot_be_right_gives_no_energy_and_a_reason(states, why):
    energy = energy_of_busy(BUSY, states, "gpu 0", Reading(80.0))
    assert energy.value is None
    assert why in energy.why


def test_a_kernel_is_kept_busy_for_the_window_and_its_calls_are_counted():
    clock = FakeClock()
    timer = Timer(Work(lambda _: clock.pass_s(1e-3)), clock)
    begin_s = clock.time_s
    busy = keep_busy(timer, WarmUp(0.1, 10, True, 1e-3, 10)).value
    assert busy.begin_s == begin_s
    assert busy.end_s - busy.begin_s == pytest.approx(WINDOW_S, abs=0.011)
    assert busy.call_count == pytest.approx((busy.end_s - busy.begin_s) / 1e-3, abs=1)


def test_energy_with_emptied_caches_is_refused():
    clock = FakeClock()
    timer = Timer(Work(lambda _: clock.pass_s(1e-3), 1, lambda: None), clock)
    busy = keep_busy(timer, WarmUp(0.1, 10, True, 1e-3, 1))
    assert (busy.value, "emptying the caches" in busy.why) == (None, True)
