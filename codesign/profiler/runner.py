"""Measure a plan: child processes take turns in rounds, one at work at a time. What fails is a row, the rest go on."""

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from codesign.codec import from_plain, to_plain
from codesign.errors import CapabilityError, InputError, MeasurementError
from codesign.hardware.memory_probe import MemoryProbe
from codesign.profiler.candidates import (
    CHILD_BYTES,
    Entry,
    RunPlan,
    flush_bytes,
    memory_groups,
    processors_of,
    shuffled,
)
from codesign.profiler.child import ChildSpec
from codesign.profiler.children import (
    START_LIMIT_S,
    Child,
    ChildFailedError,
    ChildOutOfMemoryError,
    ChildRefusedError,
    Interrupted,
)
from codesign.profiler.energy import COUNTER_WAIT_S, MIN_WINDOW_S, Energy
from codesign.profiler.gpu_energy import Busy
from codesign.profiler.gpu_watch import DeviceLostError, GpuWatch
from codesign.profiler.load import LoadChange
from codesign.profiler.processors import pinned_processors
from codesign.profiler.reading import Reading, absent
from codesign.profiler.records import DEVICE_LOST, INTERRUPTED, Measurement, case_json
from codesign.profiler.run_folder import RunWriter
from codesign.profiler.signals import Stop
from codesign.profiler.statistics import refuse_bad_samples
from codesign.profiler.timing import Round, Sampling, WarmUp
from codesign.profiler.turn import Prepared, RunSettings, Turn, row
from codesign.profiler.verdict import Conditions, Kind, Reason, Verdict

SPARE_S = 60.0
LEAKED_BYTES = 3 * CHILD_BYTES  # held by a process that has let go of its copies


class Children:
    """The processes of the candidates, started when they are first needed."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._modules = modules
        self._running: dict[str, Child] = {}
        self._silent: set[str] = set()  # started, and have not said so yet
        self._begun: set[str] = set()

    def ask(self, entry: Entry, order: dict[str, Any], limit_s: float, stop: Stop) -> dict[str, Any]:
        """Return the answer of the entry's process, which is forgotten if it is gone.

        One that has begun is not told again. One that ran out of memory is ended: its libraries keep what they have
        got.
        """
        try:
            child = self._child(entry, stop)
            if entry.candidate not in self._begun:
                child.begin(order)
            self._begun.discard(entry.candidate)
            return child.answer(limit_s, stop)
        except (ChildFailedError, ChildOutOfMemoryError, Interrupted):
            self.end(entry)
            raise

    def begin(self, orders: Sequence[tuple[Entry, dict[str, Any]]], stop: Stop) -> None:
        """Give an order to each process at once; `ask` waits for the answers, and tells those again that are gone."""
        for entry, _ in orders:
            self._start(entry)
        for entry, order in orders:
            try:
                self._child(entry, stop).begin(order)
            except ChildFailedError:
                self.end(entry)
            else:
                self._begun.add(entry.candidate)

    def _start(self, entry: Entry) -> None:
        if entry.candidate in self._running:
            return
        spec = ChildSpec(
            library=entry.kernel.library,
            kernel=entry.kernel.name,
            scheme=entry.kernel.scheme,
            threads=entry.case.threads,
            affinity=processors_of(entry),
            modules=self._modules,
            parent_pid=os.getpid(),
            device=entry.kernel.device,
        )
        self._running[entry.candidate] = Child(spec)
        self._silent.add(entry.candidate)

    def _child(self, entry: Entry, stop: Stop) -> Child:
        self._start(entry)
        child = self._running[entry.candidate]
        if entry.candidate in self._silent:
            try:
                child.answer(START_LIMIT_S, stop)
            except ChildRefusedError as error:
                raise ChildFailedError(str(error)) from error
            self._silent.discard(entry.candidate)
        return child

    def end(self, entry: Entry) -> None:
        """End the process of an entry; its next case starts another one."""
        self._forget(entry.candidate)

    def _forget(self, name: str) -> None:
        self._silent.discard(name)
        self._begun.discard(name)
        self._running.pop(name).kill()

    def keep(self, entries: tuple[Entry, ...]) -> None:
        """End the processes that none of these entries needs."""
        needed = {entry.candidate for entry in entries}
        for name in [name for name in self._running if name not in needed]:
            self._forget(name)

    def kill_all(self) -> None:
        """End all processes."""
        self.keep(())


@dataclass(frozen=True, slots=True)
class Instruments:
    """What is watched beside the kernels: the GPU, where kernels of the plan run on one; memory, where on the CPU."""

    gpu: GpuWatch | None = None
    memory: MemoryProbe | None = None


NO_INSTRUMENTS = Instruments()


class Runner:
    """Measures plans into one run directory."""

    def __init__(
        self,
        writer: RunWriter,
        settings: RunSettings,
        children: Children,
        stop: Stop,
        report: Callable[[Measurement], None],
        instruments: Instruments = NO_INSTRUMENTS,
    ) -> None:
        self._writer, self._settings, self._report = writer, settings, report
        self._children, self._stop = children, stop
        self._watch, self._probe = instruments.gpu, instruments.memory

    def run(self, plan: RunPlan) -> None:
        """Measure what is not measured yet; Interrupted if the user asks to stop, DeviceLostError if the GPU goes."""
        try:
            for number, block in enumerate(plan.blocks):
                self._measure_block(number, tuple(entry for entry in block if entry.key not in self._writer.done))
        finally:
            self._children.kill_all()

    def _measure_block(self, number: int, entries: tuple[Entry, ...]) -> None:
        self._children.keep(entries)
        order = shuffled(entries, self._settings.seed, f"block {number}")
        for group in memory_groups(order, self._settings.memory_limit_bytes):
            turns = {entry.key: Turn(entry, _now_utc()) for entry in group}
            try:
                self._measure_group(number, turns)
            except (Interrupted, DeviceLostError) as error:
                for turn in turns.values():
                    if turn.samplings:
                        self._keep_partial(turn, error)
                raise

    def _keep_partial(self, turn: Turn, error: Exception) -> None:
        """Keep the samples so far in a row that does not count as measured."""
        partial = row(turn, self._settings, Conditions())
        if isinstance(error, DeviceLostError):
            reason = Reason(DEVICE_LOST, str(error))
        else:
            reason = Reason(INTERRUPTED, f"by {self._stop.signal_name}")
        self._writer.append(replace(partial, verdict=Verdict(Kind.INVALID, (reason, *partial.verdict.reasons))))

    def _measure_group(self, number: int, turns: dict[str, Turn]) -> None:
        """Measure the group's candidates, each in as many fresh processes as are asked for, one after the other."""
        for process in range(self._settings.repeat):
            if process:
                self._children.kill_all()
                turns.update({key: turn.in_next_process() for key, turn in turns.items()})
            self._measure_in_turns(f"block {number}" + (f" process {process}" if process else ""), turns)

    def _measure_in_turns(self, name: str, turns: dict[str, Turn]) -> None:
        """Measure the group's candidates in turns; those that are finished or failed leave `turns`."""
        self._begin(tuple(turns.values()))
        for step in (self._prepare, self._warm_up):
            for key in sorted(turns, key=lambda key: turns[key].entry.kernel.tunes):  # once the others are done
                self._take(turns, key, step)
        round_number = 0
        while waiting := tuple(turn.entry for turn in turns.values() if not turn.is_sampled):
            for entry in shuffled(waiting, self._settings.seed, f"{name} round {round_number}"):
                self._take(turns, entry.key, self._round)
            round_number += 1

    def _take(self, turns: dict[str, Turn], key: str, step: Callable[[Turn], Turn | None]) -> None:
        """Do one step of a turn; one that fails is written as such. What is written leaves `turns`."""
        if self._stop.asked:
            raise Interrupted
        try:
            after = step(turns[key])
        except (MeasurementError, InputError) as error:  # the child's end, its refusal, or times that are none
            if self._watch is not None and turns[key].entry.kernel.device == "cuda":
                self._watch.refuse_lost()  # no other fault may hide it
            text, is_memory = str(error), isinstance(error, ChildOutOfMemoryError)
            self._write(turns.pop(key), Conditions(memory_error=text) if is_memory else Conditions(failure=text))
            return
        if after is None:
            self._release(turns.pop(key))
        else:
            turns[key] = after

    def _ask(self, turn: Turn, order: str, limit_s: float, **more: Any) -> dict[str, Any]:
        return self._children.ask(turn.entry, {"order": order, **more}, limit_s, self._stop)

    def _begin(self, turns: tuple[Turn, ...]) -> None:
        """Let kernels of a GPU be prepared all at once, each on a processor: nothing is timed meanwhile."""
        together = [turn for turn in turns if turn.entry.kernel.device == "cuda" and not turn.entry.kernel.tunes]
        if self._stop.asked or len(together) < 2:
            return
        self._children.begin([(one.entry, {"order": "prepare", **self._order(one)}) for one in together], self._stop)

    def _order(self, turn: Turn) -> dict[str, Any]:
        """Return what a process must know to prepare a case."""
        return {
            "case": case_json(turn.entry.case),
            "copies": turn.entry.copies,
            "flush_bytes": flush_bytes(turn.entry.case, self._settings.limits.cache_bytes),
        }

    def _prepare(self, turn: Turn) -> Turn | None:
        """Pack and check; a wrong result is written and gets no time."""
        answer = self._ask(turn, "prepare", self._settings.prepare_limit_s, **self._order(turn))
        answer.pop("ok")
        prepared = replace(turn, prepared=from_plain(Prepared, answer, "the child's answer"))
        if prepared.prepared is not None and not prepared.prepared.check.passed:
            self._write(prepared, Conditions(output_error=prepared.prepared.check.reason))
            return None
        return prepared

    def _warm_up(self, turn: Turn) -> Turn:
        rule = self._settings.rule
        answer = self._ask(turn, "warm_up", rule.warm_up_max_s + rule.budget_s + SPARE_S, rule=to_plain(rule))
        return replace(turn, sampling=Sampling(from_plain(WarmUp, answer["warm_up"], "the child's answer"), rule))

    def _round(self, turn: Turn) -> Turn | None:
        """Take a round; the candidate whose samples suffice is written and leaves."""
        assert turn.sampling is not None
        limit_s = self._settings.rule.budget_s + SPARE_S
        answer = self._ask(turn, "round", limit_s, samples=turn.sampling.next_sample_count())
        taken = from_plain(Round, answer["round"], "the child's answer")
        refuse_bad_samples(taken.samples_s)
        after = replace(
            turn,
            sampling=turn.sampling.add(taken),
            loads=(*turn.loads, from_plain(LoadChange, answer["load"], "the child's answer")),
        )
        after = self._probed(self._watched(after, answer))
        if not after.is_sampled or len(after.samplings) < self._settings.repeat:
            return after
        self._write(self._with_energy(after), Conditions())
        return None

    def _watched(self, turn: Turn, answer: dict[str, Any]) -> Turn:
        """Return the turn with what its GPU did in the round, or why that is not known."""
        if self._watch is None or turn.entry.kernel.device != "cuda":
            return turn
        seen = self._watch.round_of(answer["begin_s"], answer["end_s"])
        self._watch.refuse_lost(answer["end_s"])
        if seen is None:
            return replace(turn, unwatched=self._watch.why or "it saw nothing of a round")
        return replace(turn, gpu_rounds=(*turn.gpu_rounds, seen))

    def _probed(self, turn: Turn) -> Turn:
        """Return the turn with what memory gave to as many threads just after the round; hot weights stay hot."""
        case = turn.entry.case
        if self._probe is None or turn.entry.kernel.device == "cuda" or getattr(case, "cache", "") == "hot":
            return turn
        try:
            rate = self._probe.bytes_per_s(case.threads, pinned_processors(case.threads))
        except CapabilityError:  # no memory for its buffer: times are worth more
            self._probe = None
            return turn
        return replace(turn, memory_bytes_per_s=(*turn.memory_bytes_per_s, rate))

    def _with_energy(self, turn: Turn) -> Turn:
        """Return the turn with the energy of its calls, or why there is none; time is never lost for lack of it."""
        idle = (self._settings.idle_watt or {}).get(turn.entry.kernel.device)
        if idle is None or idle.value is None:
            return turn
        assert turn.sampling is not None
        # The window, two steps of the counter, and the last call of each
        limit_s = MIN_WINDOW_S + COUNTER_WAIT_S + 4 * turn.sampling.found.call_s + SPARE_S
        try:
            answer = self._ask(turn, "energy", limit_s, idle_watt=idle.value)
        except (ChildFailedError, ChildRefusedError) as error:
            return replace(turn, energy=absent(str(error)))
        return replace(turn, energy=self._energy_of(answer, idle))

    def _energy_of(self, answer: dict[str, Any], idle: Reading[float]) -> Reading[Energy]:
        """Return the energy that the child measured, or that of the time in which it kept the GPU busy."""
        if answer.get("busy") and self._watch is not None:
            return self._watch.energy_of(from_plain(Busy, answer["busy"], "the child's answer"), idle)
        energy = from_plain(Energy, answer["energy"], "the child's answer") if answer.get("energy") else None
        return Reading(energy, answer["why"])

    def _release(self, turn: Turn) -> None:
        """Let the child drop its copies; one that fails in this is gone, and its row is written already.

        One that keeps them, as libraries with a cache of packed weights do, is ended: a new one takes the next case.
        """
        try:
            held_bytes = self._ask(turn, "release", SPARE_S).get("held_bytes", 0)
        except (ChildFailedError, ChildRefusedError):
            return
        if held_bytes > LEAKED_BYTES and turn.entry.kernel.device == "cpu":  # a GPU's libraries alone are as large
            self._children.end(turn.entry)

    def _write(self, turn: Turn, ended: Conditions) -> None:
        measurement = row(turn, self._settings, ended)
        self._writer.append(measurement)
        self._report(measurement)


def _now_utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
