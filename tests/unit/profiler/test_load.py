import itertools
from pathlib import Path

import pytest

from codesign.profiler.load import TICKS_PER_S, LoadCounters, load_change, read_load

BEFORE = LoadCounters(100.0, 5.0, 10, 50.0, 1.0, 2.0, 0.5)


def fake_proc(root: Path) -> Path:
    (root / "proc/pressure").mkdir(parents=True)
    ticks = [1000, 200, 300, 99999, 77, 40, 60, 500, 0, 0]
    (root / "proc/stat").write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\n")
    (root / "proc/pressure/cpu").write_text("some avg10=1.00 avg60=0.50 avg300=0.10 total=2500000\nfull avg10=0\n")
    (root / "proc/loadavg").write_text("1.25 0.80 0.40 2/190 4242\n")
    return root


def test_counters_are_read_from_proc(tmp_path):
    seen = read_load(fake_proc(tmp_path))
    assert seen.busy_s == pytest.approx(1600 / TICKS_PER_S)
    assert seen.stolen_s == pytest.approx(500 / TICKS_PER_S)
    assert (seen.waiting_s, seen.load_average) == (2.5, 1.25)
    assert seen.own_s > 0


@pytest.mark.parametrize("text", ["", "cpu 1 2", "cpu a b c d e f g h", "\n\n"])
def test_what_cannot_be_read_is_unknown(tmp_path, text):
    assert read_load(tmp_path).busy_s is None
    root = fake_proc(tmp_path)
    for name in ("stat", "pressure/cpu", "loadavg"):
        (root / "proc" / name).write_text(text)
    seen = read_load(root)
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
