import itertools
import os
from pathlib import Path

import pytest

from codesign.profiler.load import TICKS_PER_S, LoadCounters, load_change, read_load

BEFORE = LoadCounters(100.0, 5.0, 10, 50.0, 1.0, 2.0, 0.5)


def fake_proc(root: Path) -> Path:
    (root / "proc").mkdir(parents=True)
    ticks = [1000, 200, 300, 99999, 77, 40, 60, 500, 0, 0]
    rows = [f"cpu  {' '.join(map(str, ticks))}", f"cpu0 {'0 ' * 7}440 0 0", f"cpu1 {'0 ' * 7}60 0 0", "intr 7"]
    (root / "proc/stat").write_text("\n".join(rows) + "\n")
    for task, waited in (("7", 1_500_000_000), ("8", 1_000_000_000)):
        (root / f"proc/self/task/{task}").mkdir(parents=True)
        (root / f"proc/self/task/{task}/schedstat").write_text(f"900 {waited} 12\n")
    (root / "proc/loadavg").write_text("1.25 0.80 0.40 2/190 4242\n")
    return root


def test_counters_are_read_from_proc(tmp_path):
    seen = read_load(root=fake_proc(tmp_path))
    assert seen.busy_s == pytest.approx(1600 / TICKS_PER_S)
    assert seen.stolen_s == pytest.approx(500 / TICKS_PER_S)
    assert (seen.waiting_s, seen.load_average) == (2.5, 1.25)
    assert seen.own_s > 0


@pytest.mark.parametrize("text", ["", "cpu 1 2", "cpu a b c d e f g h", "\n\n"])
def test_what_cannot_be_read_is_unknown(tmp_path, text):
    assert read_load(root=tmp_path).busy_s is None
    root = fake_proc(tmp_path)
    for name in ("stat", "loadavg"):
        (root / "proc" / name).write_text(text)
    (root / "proc/self/task/7/schedstat").write_text("900")
    seen = read_load(root=root)
    assert (seen.busy_s, seen.stolen_s, seen.waiting_s) == (None, None, None)


def test_rates_are_per_second_and_without_our_own_work():
    after = LoadCounters(102.0, 6.0, 50, 54.0, 1.5, 2.5, 0.7)
    change = load_change(BEFORE, after)
    assert change.duration_s == 2.0
    assert change.involuntary_switches_per_s == 20.0
    assert change.other_cpu_count == pytest.approx(1.5)
    assert change.stolen_cpu_count == pytest.approx(0.25)
    assert change.waiting_fraction == pytest.approx(0.25)
    assert change.load_average == 0.7


def test_short_spans_average_to_the_truth():
    """The kernel counts whole ticks, so single spans err both ways; their sum must not."""
    marks = [LoadCounters(i * 0.012, i * 0.012, 0, (i * 12 // 10) * 0.01, None, None, None) for i in range(101)]
    spans = [load_change(a, b) for a, b in itertools.pairwise(marks)]
    assert min(one.other_cpu_count for one in spans) < 0 < max(one.other_cpu_count for one in spans)
    assert sum(one.other_cpu_count * one.duration_s for one in spans) == pytest.approx(0, abs=0.011)


def test_unknown_counters_give_unknown_rates():
    unknown = LoadCounters(102.0, 6.0, 10, None, None, None, None)
    change = load_change(BEFORE, unknown)
    assert (change.other_cpu_count, change.stolen_cpu_count, change.waiting_fraction) == (None, None, None)


def test_stolen_time_is_that_of_our_own_processors(tmp_path):
    root = fake_proc(tmp_path)
    assert read_load((1,), root).stolen_s == pytest.approx(60 / TICKS_PER_S)
    assert read_load((0, 1), root).stolen_s == pytest.approx(500 / TICKS_PER_S)
    assert read_load((9,), root).stolen_s is None


def test_the_work_of_the_process_that_started_us_is_not_others(tmp_path):
    root = fake_proc(tmp_path)
    alone = read_load(root=root)
    (root / f"proc/{os.getppid()}").mkdir()
    (root / f"proc/{os.getppid()}/stat").write_text(f"1 (a (b) c) S {'0 ' * 10}100000 20000 0 0 20 0\n")
    change = load_change(alone, read_load(root=root))
    assert change.other_cpu_count * change.duration_s == pytest.approx(-120000 / TICKS_PER_S, rel=1e-3)
