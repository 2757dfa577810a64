"""GPU kernels are timed by the GPU's clock, in whole turns through their copies."""

import pytest
from fake_clock import FakeClock

from codesign.profiler.graph_timer import GraphTimer
from codesign.profiler.timing import Work, take_round, warm_up

CALL_S, GAP_S = 5e-6, 20e-6


class FakeGpu:
    """Each call takes 5 us on the GPU; what is not recorded leaves a gap before every call."""

    def __init__(self, clock):
        self.clock, self.started, self.flushed = clock, [], 0

    def recorded(self, calls):
        self.started.clear()
        calls()
        turn = len(self.started)
        return lambda: turn

    def elapsed_s(self, calls, count):
        seconds = sum(calls() for _ in range(count)) * CALL_S
        self.clock.pass_s(seconds)
        return seconds


def timer(copies, before_sample=None):
    clock = FakeClock()
    gpu = FakeGpu(clock)
    return GraphTimer(Work(gpu.started.append, copies, before_sample), clock, gpu), gpu


@pytest.mark.parametrize("calls", [1, 7, 21, 200])
def test_a_sample_is_of_so_many_calls_whatever_a_turn_is(calls):
    one, gpu = timer(21)
    assert one.sample(calls) == pytest.approx(calls * CALL_S)
    assert gpu.started == list(range(21))


def test_the_gpu_is_busy_when_what_is_timed_is_handed_over():
    """One turn goes before the first event; with emptied caches what empties them does."""
    one, gpu = timer(3)
    log = []
    one._replay = lambda: log.append("turn") or 3
    gpu.elapsed_s = lambda calls, count: log.append(f"timed {count}") or 1.0
    one.sample(6)
    assert log == ["turn", "timed 2"]
    log.clear()
    one.work = Work(one.work.run, 3, lambda: log.append("flush"))
    one.sample(1)
    assert log[0] == "flush"
    assert "turn" not in log


def test_calls_that_no_graph_records_say_so():
    one, gpu = timer(2)
    assert one.note == ""
    gpu.recorded = lambda calls: calls
    assert "cannot record" in GraphTimer(one.work, gpu.clock, gpu).note


def test_emptied_caches_allow_one_call_at_a_time():
    flushed = []
    one, gpu = timer(1, lambda: flushed.append(True))
    assert one.sample(1) == pytest.approx(CALL_S)
    assert (gpu.started, flushed) == ([0], [True])


def test_rounds_are_taken_as_on_the_cpu():
    one, _ = timer(4)
    found = warm_up(one)
    assert found.call_s == pytest.approx(CALL_S)
    assert found.calls_per_sample == 200
    assert take_round(one, found, 5).samples_s == pytest.approx([CALL_S] * 5)
