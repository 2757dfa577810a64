"""Plans are measured in turns, and whatever a kernel does, the others are measured."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from codesign.codec import to_plain
from codesign.errors import CapabilityError
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Source
from codesign.hardware.memory_probe import MemoryProbe
from codesign.profiler.candidates import Question, RunPlan, Shape, make_plan
from codesign.profiler.check import Check
from codesign.profiler.children import Interrupted
from codesign.profiler.discover import OWN_MODULE, load_catalog
from codesign.profiler.export import row_of
from codesign.profiler.kernel import GemmCase
from codesign.profiler.load import LoadChange
from codesign.profiler.processors import available_memory_bytes, core_count, last_level_cache_bytes, pinned_processors
from codesign.profiler.profile import cache_bytes, limits_of
from codesign.profiler.run_folder import open_run, read_run
from codesign.profiler.runner import Children, Instruments, Runner
from codesign.profiler.signals import Stop, stopping
from codesign.profiler.timing import Round, Rule, WarmUp
from codesign.profiler.turn import Limits, Prepared, RunSettings, Turn, mean_load
from codesign.profiler.verdict import Kind
from tests.gpu_kernels import MODULE as GPU_MODULE
from tests.measured_rows import run_head
from tests.profile_plans import MODULES, only, plan, settings


def measure(folder: Path, what: RunPlan, how: RunSettings) -> dict[str, list[object]]:
    """Return what was measured by kernel, and check that no process is left."""
    children = Children(how.modules)
    with open_run(folder, run_head()) as writer:
        Runner(writer, how, children, Stop(), lambda _: None).run(what)
    assert child_processes(os.getpid()) == []
    rows: dict[str, list[object]] = {}
    for one in read_run(folder).measurements:
        rows.setdefault(one.kernel, []).append(one)
    return rows


def child_processes(parent: int) -> list[int]:
    """Return the processes that were started to measure for a parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if "codesign.profiler.child" in command and f'"parent_pid": {parent},' in command:
            found.append(int(path.name))
    return found


def test_kernels_of_a_gpu_are_prepared_all_at_once_but_those_that_tune_themselves(tmp_path, monkeypatch):
    place = tmp_path / "meeting"
    place.mkdir()
    monkeypatch.setenv("CODESIGN_TEST_MEETING", str(place))
    modules = (GPU_MODULE,)
    question = Question((Shape(64, 128),), (), (1, 2), (1,), ("meeting",), (), "rotating", 3, device="cuda")
    what = make_plan(question, load_catalog(modules), {}, 1e5)
    rows = measure(tmp_path / "run", what, settings(modules=modules))
    measured = {name: [bool(one.samples_s) for one in found] for name, found in rows.items()}
    assert measured == {"first": [True] * 2, "second": [True] * 2, "tuned": [True] * 2}
    assert {one.procedure.affinity for found in rows.values() for one in found} == {()}
    assert {one.conditions.load for found in rows.values() for one in found} == {None}


def test_each_fault_is_a_row_of_its_own_and_the_rest_complete(tmp_path):
    rows = measure(tmp_path, plan(("fake", "broken"), (1, 2)), settings(prepare_limit_s=3.0))
    reasons = {name: [f"{one.verdict.reasons[0].name}: {one.verdict.reasons[0].evidence}" for one in rows[name]]
               for name in rows if one_is_bad(rows[name])}  # fmt: skip
    expected = {
        "segfault": "failed: it was ended by SIGSEGV",
        "abort": "failed: it was ended by SIGABRT",
        "exit": "failed: it ended with exit code 1: the library gives up",
        "hang": "failed: it took longer than 3 s",
        "throw": "failed: RuntimeError: no such instruction",
        "oom": "oom: out of memory",
    }
    assert {name: text for name, text in reasons.items() if name != "wrong"} == {
        n: [t] * 2 for n, t in expected.items()
    }
    assert all(text.startswith("wrong_output: ") for text in reasons["wrong"])
    for name in ("plain", "slower", "packed"):
        assert [one.verdict.kind is not Kind.INVALID and len(one.samples_s) >= 12 for one in rows[name]] == [True, True]


def one_is_bad(rows: list[object]) -> bool:
    return any(one.verdict.kind is Kind.INVALID for one in rows)


class OneTwoThree(MemoryProbe):
    """Memory that gives 1, 2, 3 ... bytes per second."""

    def __init__(self):
        self.asked = []

    def bytes_per_s(self, threads, processors):
        self.asked.append((threads, processors))
        return float(len(self.asked))


@pytest.mark.parametrize("cache", ["rotating", "hot"])
def test_memory_is_probed_after_each_round_on_the_processors_of_the_kernel_unless_it_is_hot(tmp_path, cache):
    probe = OneTwoThree()
    with open_run(tmp_path, run_head()) as writer:
        what = only(plan(("fake",), cache=cache), "plain")
        Runner(writer, settings(), Children(MODULES), Stop(), lambda _: None, Instruments(memory=probe)).run(what)
    (one,) = read_run(tmp_path).measurements
    rounds = len(one.procedure.round_sizes) if cache == "rotating" else 0
    assert one.memory_bytes_per_s == tuple(float(i + 1) for i in range(rounds))
    assert probe.asked == [(1, pinned_processors(1))] * rounds
    assert (
        row_of(one)["memory_gb_per_s"] == one.memory_gb_per_s == (pytest.approx((rounds + 1) / 2e9) if rounds else None)
    )


def test_without_memory_for_the_probe_times_are_taken_all_the_same(tmp_path):
    class TooLarge(OneTwoThree):
        def bytes_per_s(self, threads, processors):
            super().bytes_per_s(threads, processors)
            raise CapabilityError("256 MiB of memory are not to be had.")

    probe = TooLarge()
    with open_run(tmp_path, run_head()) as writer:
        Runner(writer, settings(), Children(MODULES), Stop(), lambda _: None, Instruments(memory=probe)).run(
            only(plan(("fake",)), "plain")
        )
    (one,) = read_run(tmp_path).measurements
    assert (one.memory_bytes_per_s, one.memory_gb_per_s, len(probe.asked)) == ((), None, 1)
    assert one.samples_s


def test_a_wrong_kernel_gets_no_time(tmp_path):
    (wrong,) = measure(tmp_path, only(plan(("broken",)), "wrong"), settings())["wrong"]
    assert (wrong.samples_s, wrong.summary, wrong.check.passed) == ((), None, False)


def test_times_come_from_rounds_that_were_taken_in_turns(tmp_path):
    rows = measure(tmp_path, plan(("fake",)), settings())
    assert rows["slower"][0].summary.median_s > 1.5 * rows["plain"][0].summary.median_s
    for (one,) in rows.values():
        assert len(one.procedure.round_sizes) >= 3
        assert sum(one.procedure.round_sizes) == len(one.samples_s)
        assert one.procedure.affinity == pinned_processors(1)


def test_groups_for_little_memory_measure_the_same_cases(tmp_path):
    rows = measure(tmp_path, plan(("fake",)), settings(memory_limit_bytes=1.0))
    assert sorted(rows) == ["packed", "plain", "slower"]


def test_done_cases_are_not_measured_again(tmp_path):
    first = measure(tmp_path, only(plan(("fake",)), "plain"), settings())["plain"]
    assert measure(tmp_path, plan(("fake",)), settings())["plain"] == first


def test_a_library_that_prints_disturbs_nothing_and_a_kernel_that_is_away_is_a_row(tmp_path):
    missing = only(plan(("fake",)), "plain")
    rows = measure(tmp_path, missing, settings(modules=(OWN_MODULE,)))
    assert "no kernel fake/plain" in rows["plain"][0].verdict.reasons[0].evidence


def test_a_stop_keeps_the_samples_so_far_as_interrupted(tmp_path):
    stop, children = Stop(), Children(MODULES)

    class Slow(Runner):
        def _round(self, turn):
            after = super()._round(turn)
            stop.ask(signal.SIGTERM)
            return after

    what = only(plan(("fake",)), "plain", "slower")
    long = settings(rule=Rule(warm_up_min_s=0.01, warm_up_max_s=0.05, min_samples=1000, budget_s=60))
    with open_run(tmp_path, run_head()) as writer, pytest.raises(Interrupted):
        Slow(writer, long, children, stop, lambda _: None).run(what)
    (row,) = read_run(tmp_path).measurements
    assert row.interrupted
    assert len(row.samples_s) > 0
    assert "SIGTERM" in row.verdict.reasons[0].evidence
    assert child_processes(os.getpid()) == []


class Canned:
    """Children that answer as scripted."""

    def __init__(self, **answers: dict) -> None:
        self.ended = []
        self.answers = {
            "prepare": {"ok": True, "check": {"error_fraction": 0.0, "allowed_fraction": 1e-3, "passed": True},
                        "copies": 2, "read_bytes": 1.0, "math_dtype": "bf16"},
            "warm_up": {"warm_up": to_plain(WarmUp(0.1, 10, True, 1e-3, 1))},
            "round": {"round": to_plain(Round((1e-3,) * 6, (), 6e-3)), "load": to_plain(LoadChange(6e-3, 0.0))},
            "release": {},
            **answers,
        }  # fmt: skip

    def ask(self, entry, order, limit_s, stop):
        answer = self.answers[order["order"]]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def keep(self, entries):
        pass

    def kill_all(self):
        pass

    def end(self, entry):
        self.ended.append(entry.candidate)


def canned(folder: Path, **answers: object) -> list:
    return measured(folder, Canned(**answers))


def measured(folder: Path, children: Canned) -> list:
    with open_run(folder, run_head()) as writer:
        Runner(writer, settings(), children, Stop(), lambda _: None).run(only(plan(("fake",)), "plain"))
    return list(read_run(folder).measurements)


@pytest.mark.parametrize(("held_bytes", "ended"), [(500 * 2**20, 0), (5 * 2**30, 1)])
def test_a_process_that_keeps_its_copies_is_ended(tmp_path, held_bytes, ended):
    children = Canned(release={"held_bytes": held_bytes})
    (row,) = measured(tmp_path, children)
    assert row.verdict.kind is not Kind.INVALID
    assert len(children.ended) == ended


@pytest.mark.parametrize("bad_s", [0.0, -1e-3, float("nan"), float("inf")])
def test_times_that_are_none_make_an_invalid_row(tmp_path, bad_s):
    taken = {"samples_s": [1e-3, bad_s], "gaps": [], "spent_s": 2e-3}
    (row,) = canned(tmp_path, round={"round": taken, "load": to_plain(LoadChange(6e-3, 0.0))})
    assert (row.verdict.kind, row.summary) == (Kind.INVALID, None)
    assert row.verdict.reasons[0].name == "failed"


def test_an_error_that_is_no_number_makes_an_invalid_row(tmp_path):
    answer = Canned().answers["prepare"]
    check = {"error_fraction": float("nan"), "allowed_fraction": 1e-3, "passed": True, "reason": ""}
    (row,) = canned(tmp_path, prepare={**answer, "check": check})
    assert row.verdict.kind is Kind.INVALID


def test_a_stop_after_the_last_round_leaves_the_row_finished(tmp_path):
    with pytest.raises(Interrupted):
        canned(tmp_path, release=Interrupted())
    (row,) = read_run(tmp_path).measurements
    assert str(row.verdict) == "suspect(few_samples)"


def test_a_child_ends_with_its_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys\n"
        "from codesign.profiler.child import ChildSpec\n"
        "from codesign.profiler.children import Child\n"
        "from codesign.profiler.signals import Stop\n"
        f"child = Child(ChildSpec('fake', 'plain', 'BF16', 1, (), {MODULES!r}, os.getpid()))\n"
        "child.answer(60, Stop())\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
        assert child_processes(parent.pid) == [child]
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def test_garbage_is_no_answer(tmp_path):
    stop = Stop()
    (entry,) = only(plan(("fake",)), "plain").entries
    children = Children(MODULES)
    try:
        children.ask(entry, {"order": "release"}, 10, stop)
        child = next(iter(children._running.values()))
        child._buffer = b"Segmentation fault (core dumped)\n"
        with pytest.raises(Exception, match="no answer: b'Segmentation"):
            children.ask(entry, {"order": "release"}, 10, stop)
        assert children.ask(entry, {"order": "release"}, 10, stop)["ok"]
    finally:
        children.kill_all()


def test_the_first_signal_asks_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping(lambda: pytest.fail("only a second signal ends at once")) as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signal_name, stop.exit_code, stop.overdue) == ("SIGTERM", 143, False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_load_is_meant_over_rounds_and_short_ones_say_nothing():
    short = LoadChange(0.1, 50.0, 1.0, 0.0, None, 0.5)
    assert mean_load((short,)) is None
    mean = mean_load((short, LoadChange(0.3, 10.0, 0.0, 0.0, 0.1, 0.7)))
    assert mean.other_cpu_count == pytest.approx(0.25)
    assert (mean.involuntary_switches_per_s, mean.waiting_fraction, mean.load_average) == (pytest.approx(20), None, 0.7)


@pytest.mark.parametrize(("cache", "copies", "limit"), [("rotating", 10, 5e9), ("rotating", 1, None), ("hot", 1, None)])
def test_weights_in_the_cache_have_no_memory_ceiling(cache, copies, limit):
    (entry,) = only(plan(("fake",)), "plain").entries
    entry = replace(entry, copies=copies, case=GemmCase("BF16", 1, 64, 128, cache=cache))
    prepared = Prepared(Check(0.0, 1e-3, True), copies, 2e4, "bf16")
    found = Limits(5e9, {"bf16": 1e12}, 1e5).ceilings(Turn(entry, "", prepared, memory_bytes_per_s=(4e9,)))
    assert (found.bytes_per_s, found.flop_per_s) == (limit, 1e12)
    assert found.probed_bytes_per_s == ((4e9,) if limit else ())


def test_threads_go_to_the_last_cores_one_each(tmp_path):
    allowed = sorted(os.sched_getaffinity(0))
    for number in allowed:
        folder = tmp_path / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{allowed.index(number) // 2}\n")
    cores = (len(allowed) + 1) // 2
    assert core_count(tmp_path) == cores
    assert pinned_processors(1, tmp_path) == (max(number for number in allowed if allowed.index(number) % 2 == 0),)
    with pytest.raises(CapabilityError, match=f"may use {cores} cores"):
        pinned_processors(cores + 1, tmp_path)


def test_sizes_of_the_machine_are_read_or_unknown(tmp_path):
    for i, text in enumerate(("32K", "1024K", "32M", "odd")):
        folder = tmp_path / f"cpu0/cache/index{i}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(text + "\n")
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:      50 kB\n")
    assert last_level_cache_bytes(tmp_path) == 32 * 2**20
    assert last_level_cache_bytes(tmp_path / "none") is None
    assert available_memory_bytes(tmp_path / "meminfo") == 50 * 1024
    assert available_memory_bytes(tmp_path / "none") is None
    stated = load_hardware("epyc-9654").cache.capacity_bytes
    assert cache_bytes(load_hardware("epyc-9654")) == max(stated, last_level_cache_bytes() or 0)


@pytest.mark.parametrize(("kind", "headroom"), [("measured", 1.8), ("datasheet", 1.0)])
def test_a_measured_bandwidth_is_no_peak(kind, headroom):
    hardware = load_hardware("x86-avx512")
    sources = {**hardware.sources, "memory.bandwidth_gb_per_s": Source("x", kind, "high")}
    limits = limits_of(replace(hardware, sources=sources))
    assert limits.bytes_per_s == pytest.approx(headroom * hardware.memory.bandwidth_bytes_per_s)
