"""Cases run by several fresh processes, and the energy of their calls: what is asked for and what becomes of it."""

import signal
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from codesign.codec import to_plain
from codesign.profiler.children import ChildFailedError, ChildRefusedError, Interrupted
from codesign.profiler.energy import Energy
from codesign.profiler.export import row_of
from codesign.profiler.load import LoadChange
from codesign.profiler.reading import Reading, absent
from codesign.profiler.records import Measurement, measurement_from_json, measurement_json
from codesign.profiler.run_folder import open_run, read_run
from codesign.profiler.runner import Runner
from codesign.profiler.signals import Stop
from codesign.profiler.statistics import process_spread, summarize
from codesign.profiler.timing import Round, StopReason, WarmUp
from codesign.profiler.verdict import Kind, Reason, Verdict
from tests.measured_rows import gemm_row, run_head
from tests.profile_plans import only, plan, settings

PREPARED = {"ok": True, "copies": 2, "read_bytes": 1.0, "math_dtype": "bf16",
            "check": {"error_fraction": 0.0, "allowed_fraction": 1e-3, "passed": True}}  # fmt: skip


class Processes:
    """Children whose calls take the times of a script, one for each process of a kernel; `log` is what was asked."""

    energy: object = MappingProxyType({})

    def __init__(self, **times_s: tuple[float, ...]) -> None:
        self.times_s, self.process, self.log = times_s, 0, []

    def ask(self, entry, order, limit_s, stop):
        name, kernel = order["order"], entry.kernel.name
        self.log.append((self.process, name, kernel))
        call_s = self.times_s[kernel][self.process]
        if call_s == 0:
            raise ChildFailedError("it was ended by SIGSEGV")
        samples_s = tuple(call_s * (1 + i * 1e-5) for i in range(order.get("samples", 0)))
        answers = {
            "prepare": PREPARED,
            "warm_up": {"warm_up": to_plain(WarmUp(0.1, 10, True, call_s, 1))},
            "round": {"round": to_plain(Round(samples_s, (), sum(samples_s))), "load": to_plain(LoadChange(0.1, 0.0))},
            "release": {},
            "energy": self.energy,
        }
        if isinstance(answers[name], Exception):
            raise answers[name]
        return dict(answers[name])

    def keep(self, entries):
        pass

    def kill_all(self):
        self.process += 1
        self.log.append((self.process, "fresh", ""))


def run(
    folder: Path, children: Processes, repeat: int, *names: str, idle_watt: dict[str, Reading[float]] | None = None
) -> dict[str, Measurement]:
    how = settings(repeat=repeat, idle_watt=idle_watt)
    with open_run(folder, run_head()) as writer:
        Runner(writer, how, children, Stop(), lambda _: None).run(only(plan(("fake",)), *names))
    return {one.kernel: one for one in read_run(folder).measurements}


def test_two_kinds_of_processes_spread_and_their_range_is_the_error_bar(tmp_path):
    row = run(tmp_path, Processes(plain=(1e-3, 1.2e-3, 1e-3, 1.2e-3, 1e-3)), 5, "plain")["plain"]
    assert (row.spread.process_count, row.spread.differs) == (5, True)
    assert row.interval_s == pytest.approx((1e-3, 1.2e-3), rel=1e-3)
    assert row.half_width_fraction == pytest.approx(0.1, rel=1e-2)
    assert len(row.samples_s) == sum(row.procedure.round_sizes) == 5 * 12
    assert row.conditions.stop_reason is StopReason.CI
    exported = row_of(row)
    assert (exported["process_count"], exported["ci_low_s"], exported["ci_high_s"]) == (5, *row.interval_s)


def test_processes_that_agree_do_not_differ(tmp_path):
    row = run(tmp_path, Processes(plain=(1e-3,) * 3), 3, "plain")["plain"]
    assert (row.spread.differs, row.is_valid) == (False, True)


def test_one_process_has_no_spread(tmp_path):
    row = run(tmp_path, Processes(plain=(1e-3,)), 1, "plain")["plain"]
    assert row.spread is None
    assert row.interval_s == (row.summary.ci_low_s, row.summary.ci_high_s)


def test_every_process_prepares_anew_and_candidates_take_turns_in_each(tmp_path):
    children = Processes(plain=(1e-3,) * 2, slower=(2e-3,) * 2)
    rows = run(tmp_path, children, 2, "plain", "slower")
    assert {name: one.spread.process_count for name, one in rows.items()} == {"plain": 2, "slower": 2}
    for process in (0, 1):
        asked = [(name, kernel) for number, name, kernel in children.log if number == process and name != "fresh"]
        assert sorted(asked[:2]) == [("prepare", "plain"), ("prepare", "slower")]
        taken = [kernel for name, kernel in asked if name == "round"]
        assert all(set(taken[i : i + 2]) == {"plain", "slower"} for i in range(0, len(taken), 2))


def test_a_process_that_dies_later_makes_the_row_invalid_and_keeps_the_samples(tmp_path):
    rows = run(tmp_path, Processes(plain=(1e-3, 0.0), slower=(2e-3, 2e-3)), 2, "plain", "slower")
    assert rows["plain"].verdict.reasons[0] == Reason("failed", "it was ended by SIGSEGV")
    assert len(rows["plain"].samples_s) == 12
    assert (rows["slower"].is_invalid, rows["slower"].spread.process_count) == (False, 2)


def test_a_stop_between_processes_keeps_the_samples_as_interrupted(tmp_path):
    stop, children = Stop(), Processes(plain=(1e-3,) * 3)

    class Stopping(Runner):
        def _round(self, turn):
            after = super()._round(turn)
            if children.process == 1:
                stop.ask(signal.SIGTERM)
            return after

    with open_run(tmp_path, run_head()) as writer, pytest.raises(Interrupted):
        Stopping(writer, settings(repeat=3), children, stop, lambda _: None).run(only(plan(("fake",)), "plain"))
    (row,) = read_run(tmp_path).measurements
    assert row.interrupted
    assert len(row.samples_s) > 12


def test_records_of_before_have_no_spread_and_those_of_now_come_back():
    old = measurement_json(gemm_row(1e-4))
    for name in ("spread", "energy", "gpu_rounds"):
        del old[name]
    assert measurement_from_json(old, "here") == gemm_row(1e-4)
    spread = process_spread([summarize([1e-4] * 9), summarize([2e-4] * 9)])
    new = replace(gemm_row(1e-4), spread=spread)
    assert measurement_from_json(measurement_json(new), "here") == new


@pytest.mark.parametrize(
    ("kind", "name", "again"),
    [
        (Kind.SUSPECT, "contention", True),
        (Kind.SUSPECT, "unstable", True),
        (Kind.SUSPECT, "few_samples", False),
        (Kind.INVALID, "contention", False),
    ],
)
def test_disturbed_rows_are_those_that_may_be_tried_again(tmp_path, kind, name, again):
    row = gemm_row(1e-4, verdict=Verdict(kind, (Reason(name, "busy"),)))
    with open_run(tmp_path, run_head()) as writer:
        writer.append(row)
    with open_run(tmp_path, run_head()) as writer:
        assert (writer.done, writer.disturbed) == ({row.key}, {row.key} if again else set())


def with_energy(folder: Path, answer: object, idle: Reading[float]) -> tuple[Measurement, list[str]]:
    children = Processes(plain=(1e-3,) * 2)
    children.energy = answer
    row = run(folder, children, 2, "plain", idle_watt={"cpu": idle})["plain"]
    return row, [name for _, name, _ in children.log if name == "energy"]


def test_energy_is_measured_once_after_the_last_process(tmp_path):
    joules = Energy("counter", "RAPL", 500.0, 5.0, 5000, 20.0)
    row, asked = with_energy(tmp_path, {"energy": to_plain(joules), "why": None}, Reading(20.0))
    assert (row.energy, asked) == (joules, ["energy"])
    exported = row_of(row)
    assert (exported["gross_joule_per_call"], exported["net_joule_per_call"]) == (0.1, pytest.approx(0.08))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"energy": None, "why": "the energy counter went backwards during the window"}, "went backwards"),
        (ChildRefusedError("no permission"), "no permission"),
        (ChildFailedError("it was ended by SIGSEGV"), "SIGSEGV"),
    ],
)
def test_energy_that_fails_is_null_with_its_reason_and_the_times_stay(tmp_path, answer, why):
    row, asked = with_energy(tmp_path, answer, Reading(20.0))
    assert (row.energy, len(asked), len(row.samples_s)) == (None, 1, 24)
    assert why in row.procedure.notes["energy"]
    assert not row.is_invalid


def test_without_a_counter_nobody_is_asked_for_energy(tmp_path):
    row, asked = with_energy(tmp_path, {}, absent("no RAPL"))
    assert (row.energy, asked, dict(row.procedure.notes)) == (None, [], {})
