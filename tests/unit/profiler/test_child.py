"""What a child does besides timing: its placement, its ranges, and emptied caches."""

import os

import pytest

from codesign import native
from codesign.codec import to_plain
from codesign.profiler import flush
from codesign.profiler.candidates import flush_bytes
from codesign.profiler.child import ChildSpec, Session, caller_on_first
from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.records import case_json
from codesign.profiler.timing import Rule
from tests.fake_kernels import MODULE

CASE = GemmCase("BF16", 1, 64, 128)
QUICK = Rule(min_sample_s=1e-4, warm_up_min_s=1e-3, warm_up_max_s=1e-2)


@pytest.fixture
def allowed():
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


def test_the_caller_sits_on_the_first_processor_only_while_it_measures(allowed):
    if len(allowed) < 2:
        pytest.skip("one processor")
    both = tuple(allowed[:2])
    with caller_on_first(both):
        assert os.sched_getaffinity(0) == {both[0]}
    assert os.sched_getaffinity(0) == set(both)
    with caller_on_first(both[:1]):
        assert os.sched_getaffinity(0) == set(both)


class Recorder:
    """Ranges that note what is opened and closed."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def range(self, message: str, number: int = 0) -> "Recorder.Range":
        return Recorder.Range(self.log, message)

    class Range:
        def __init__(self, log: list[str], message: str) -> None:
            self.log, self.message = log, message

        def __enter__(self) -> None:
            self.log.append(f"+{self.message}")

        def __exit__(self, *_: object) -> None:
            self.log.append(f"-{self.message}")


def session(monkeypatch: pytest.MonkeyPatch) -> tuple[Session, list[str]]:
    one = Session(ChildSpec("fake", "plain", "BF16", 1, (), (MODULE,), 0))
    one.ranges = recorder = Recorder()
    return one, recorder.log


def test_ranges_lie_around_case_and_rounds_and_outside_of_what_is_timed(monkeypatch):
    from codesign.profiler import timing

    one, log = session(monkeypatch)
    timed = timing._time_calls
    monkeypatch.setattr(timing, "_time_calls", lambda *given: log.append("timed") or timed(*given))
    one.prepare({"case": case_json(CASE), "copies": 1, "flush_bytes": 0})
    one.warm_up({"rule": to_plain(QUICK)})
    del log[2:-1]
    for _ in range(2):
        one.round({"samples": 2})
    one.release({})
    one.release({})
    a_round = ["+round", "timed", "timed", "-round"]
    assert log == ["+case", "+warm-up", "-warm-up", *a_round, *a_round, "-case"]


def test_a_next_case_closes_the_range_of_the_one_before(monkeypatch):
    one, log = session(monkeypatch)
    for _ in range(2):
        one.prepare({"case": case_json(CASE), "copies": 1, "flush_bytes": 0})
    assert log == ["+case", "-case", "+case"]


def test_cold_cases_alone_empty_three_times_the_cache():
    assert flush_bytes(GemmCase("BF16", 1, 64, 128, cache="cold"), 1e6) == 3_000_000
    assert flush_bytes(AttentionCase("fp16", 1, 8, 8, 64, 1, 64, cache="cold"), 1e6) == 3_000_000
    assert flush_bytes(CASE, 1e6) == 0


def test_every_cold_sample_is_one_call_after_one_flush(monkeypatch):
    one, _ = session(monkeypatch)
    flushes: list[int] = []
    monkeypatch.setattr(flush, "make_flush", lambda size, threads: lambda: flushes.append(size))
    one.prepare({"case": case_json(CASE), "copies": 1, "flush_bytes": 4096})
    one.warm_up({"rule": to_plain(QUICK)})
    assert one.found.calls_per_sample == 1
    flushes.clear()
    one.round({"samples": 3})
    assert flushes == [4096] * 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("built", [True, False])
def test_a_flush_runs_with_and_without_the_native_probe(monkeypatch, threads, built):
    if built and native.absence():
        pytest.skip(native.absence())
    if not built:
        monkeypatch.setattr(native, "absence", lambda: "not built")
    once = flush.make_flush.__wrapped__(2**20, threads)
    once()
    once()


def test_memory_that_is_not_to_be_had_is_a_row_out_of_memory(monkeypatch):
    if native.absence():
        pytest.skip(native.absence())
    with pytest.raises(MemoryError):
        flush.make_flush.__wrapped__(2**60, 1)
