"""Measure whether planned mixed precision keeps its promises on one model.

    python scripts/quality_goals.py MODEL VALID TEST STATE [COUNTxTOKENS COUNTxTOKENS]

Losses are estimated on VALID (tier fisher) and measured on TEST. Prints the KL divergence of uniform schemes, of two
heuristics and of the planned mix at the bytes of W4A16-g64, and predicted against measured loss for 12 budgets. The
last two are the windows of VALID (64x256) and of TEST (8x512).
"""

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from codesign.cost.memory import embedding_bytes, group_bytes
from codesign.model.groups import FusedGroup, GroupKey
from codesign.plan.problem import Criterion, PlanProblem, Terms
from codesign.plan.solve import solve
from codesign.quality.cells import Task
from codesign.quality.divergence import divergences, mean_divergence, run_blocks
from codesign.quality.rounded import RoundedSource, rounded_weight
from codesign.quality.sensitivity import Request, measure_sensitivity
from codesign.quality.state import State
from codesign.quality.table import QualityTable
from codesign.quality.text import file_windows
from codesign.quantize.network import Network
from codesign.quantize.source import open_source
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme

PLANNED = tuple(
    map(parse_scheme, ("W3A16-g64", "NF4", "W4A16-g64", "W4A16-g32", "W5A16-g64", "W6A16-g64", "W8A16-g64"))
)
UNIFORM = tuple(map(parse_scheme, ("W4A16-g64", "W4A16-g128", "W4A16-g128-asym", "NF4", "MXFP4-A16")))
REFERENCE, NARROW, WIDE = (parse_scheme(name) for name in ("W4A16-g64", "W3A16-g64", "W8A16-g64"))
BUDGET_BITS = (3.5, 3.75, 4.0, 4.25, 4.5, 4.75, 5.0, 5.5, 6.0, 6.5, 7.0, 7.75)
VALID_WINDOWS, TEST_WINDOWS = "64x256", "8x512"
Assignment = Mapping[GroupKey, Scheme]


class Bench:
    """The model, its bytes, and KL on the test text, each plan measured once."""

    def __init__(self, model: str, test: Path, sizes: str, state: State) -> None:
        self.source, self._state = open_source(model), state
        self.task = Task(self.source, PLANNED)
        self._windows = file_windows(self.source, test, *reversed(count_and_length(sizes)))
        self._exact = Network(self.source)
        self._ends = run_blocks(self._exact, self._windows, lambda _: None)

    def kl_nats(self, name: str, plan: Assignment) -> float:
        """Return the KL of a plan on the test text."""
        found = self._state.get(name)
        if found is None:
            schemes = {layer.name: plan[group.key] for group in self.task.all_groups for layer in group.layers}
            other = Network(RoundedSource(self.source, schemes))
            ends = run_blocks(other, self._windows, lambda _: None)
            found = mean_divergence(divergences(self._exact, self._ends, other, ends)).kl_nats
            self._state.keep({name: found})
        return float(found)

    def bytes_of(self, group: FusedGroup, scheme: Scheme) -> float:
        """Return stored bytes; a tied embedding is the head's own matrix."""
        extra = embedding_bytes(self.task.model, scheme) if group.name == "head" else 0
        return float(group_bytes(group, scheme) + extra)

    def plan_bytes(self, plan: Assignment) -> float:
        """Return the bytes of a plan."""
        return sum(self.bytes_of(group, plan[group.key]) for group in self.task.all_groups)

    def uniform(self, scheme: Scheme) -> Assignment:
        """Return one scheme everywhere."""
        return {group.key: scheme for group in self.task.all_groups}


def best_mix(bench: Bench, table: QualityTable, max_bytes: float) -> tuple[Assignment, float]:
    """Return the plan with the least predicted loss within the bytes, and that loss."""
    groups = bench.task.all_groups
    losses = table.group_losses([group.key for group in groups], [scheme.name for scheme in PLANNED])
    sizes = np.array([[bench.bytes_of(group, scheme) for scheme in PLANNED] for group in groups])
    no_kv = np.zeros(1)
    problem = PlanProblem(
        np.isfinite(losses),
        np.ones(1, dtype=bool),
        {Criterion.QUALITY: Terms(losses, no_kv), Criterion.MEMORY: Terms(sizes, no_kv)},
    )
    found = solve(problem, Criterion.QUALITY, {Criterion.MEMORY: max_bytes})
    plan = {group.key: PLANNED[s] for group, s in zip(groups, found.choice, strict=True)}
    return plan, found.values[Criterion.QUALITY]


def ends_in_8_bit(bench: Bench, max_bytes: float) -> Assignment:
    """Return the usual rule: first and last block in 8 bits, the rest in 4, from the middle on 3 until it fits."""
    last = len(bench.task.model.blocks) - 1
    plan = {group.key: WIDE if group.block_index in (0, last) else REFERENCE for group in bench.task.all_groups}
    by_depth = sorted(range(1, last), key=lambda index: abs(index - last / 2))
    for index in by_depth:
        if bench.plan_bytes(plan) <= max_bytes:
            break
        plan.update({group.key: NARROW for group in bench.task.groups(index)})
    return plan


def greedy(bench: Bench, max_bytes: float) -> Assignment:
    """Return what narrowing one group at a time gives: always the one with the least weight error for a byte saved."""
    errors = {}
    for group in bench.task.all_groups:
        exact = [bench.task.weight(layer.name) for layer in group.layers]
        for scheme in PLANNED:
            squares = [float((rounded_weight(weight, scheme) - weight).square().sum()) for weight in exact]
            errors[group.key, scheme.name] = sum(squares)
    plan = dict(bench.uniform(WIDE))
    while bench.plan_bytes(plan) > max_bytes:
        steps = []
        for group in bench.task.all_groups:
            now = plan[group.key]
            for scheme in PLANNED:
                saved = bench.bytes_of(group, now) - bench.bytes_of(group, scheme)
                if saved > 0:
                    more = errors[group.key, scheme.name] - errors[group.key, now.name]
                    steps.append((more / saved, str(group.key), scheme.name, group.key, scheme))
        _, _, _, key, scheme = min(steps, key=lambda step: step[:3])
        plan[key] = scheme
    return plan


def compare(bench: Bench, table: QualityTable) -> None:
    """Print the KL of everything that fits into the bytes of the reference."""
    room = bench.plan_bytes(bench.uniform(REFERENCE))
    plans = {f"uniform {scheme}": bench.uniform(scheme) for scheme in UNIFORM}
    plans = {name: plan for name, plan in plans.items() if bench.plan_bytes(plan) <= room}
    best_uniform = min(bench.kl_nats(name, plan) for name, plan in plans.items())
    plans |= {"ends in 8 bit": ends_in_8_bit(bench, room), "greedy by weight error": greedy(bench, room)}
    mixed, predicted = best_mix(bench, table, room)
    print(f"\n{'at the bytes of ' + REFERENCE.name:28} {'MB':>8} {'KL, nats':>9}  mix / this")
    measured = bench.kl_nats("mixed", mixed)
    for name, plan in plans.items():
        kl = bench.kl_nats(name, plan)
        print(f"{name:28} {bench.plan_bytes(plan) / 1e6:8.2f} {kl:9.4f}  {measured / kl:.2f}")
    print(f"{'planned mix':28} {bench.plan_bytes(mixed) / 1e6:8.2f} {measured:9.4f}  predicted {predicted:.4f}")
    heuristics = [bench.kl_nats(name, plans[name]) for name in ("ends in 8 bit", "greedy by weight error")]
    print(f"goal <= 0.70 of the best uniform: {measured / best_uniform:.2f}")
    print(f"goal <= 0.85 of the best heuristic: {measured / min(heuristics):.2f}")


def budgets(bench: Bench, table: QualityTable) -> None:
    """Print predicted against measured loss over the budgets."""
    weights = bench.plan_bytes(bench.uniform(WIDE)) / WIDE.bits_per_weight
    predicted, measured = [], []
    print(f"\n{'bits per weight':28} {'predicted':>9} {'measured':>9}  ratio")
    for bits in BUDGET_BITS:
        plan, loss = best_mix(bench, table, bits * weights)
        predicted.append(loss)
        measured.append(bench.kl_nats(f"budget {bits}", plan))
        print(f"{bits:<28} {loss:9.4f} {measured[-1]:9.4f}  {loss / measured[-1]:.2f}")
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    print(f"goal median error <= 0.15: {statistics.median(errors):.2f}")
    print(f"goal rank correlation >= 0.95: {spearmanr(predicted, measured).statistic:.3f}")


def count_and_length(sizes: str) -> tuple[int, int]:
    """Return the windows and the tokens of each from a text such as 64x256."""
    count, length = map(int, sizes.split("x"))
    return count, length


def main(
    model: str, valid: str, test: str, state: str, valid_sizes: str = VALID_WINDOWS, test_sizes: str = TEST_WINDOWS
) -> None:
    """Print both tables; what is measured is kept in the folder `state`."""
    folder = Path(state)
    folder.mkdir(exist_ok=True)
    source = open_source(model)
    count, length = count_and_length(valid_sizes)
    begin = time.perf_counter()
    request = Request("fisher", PLANNED, f"{count} windows of {length} tokens of {Path(valid).name}")
    windows = file_windows(source, Path(valid), length, count)
    settings = {
        "model": source.model.digest,
        "schemes": [one.name for one in PLANNED],
        "windows": [valid_sizes, test_sizes],
    }
    table = measure_sensitivity(source, windows, request, State(folder / "sensitivity", settings), print)
    print(f"sensitivity of {len(table.cells)} cells: {time.perf_counter() - begin:.0f} s")
    bench = Bench(model, Path(test), test_sizes, State(folder / "measured", settings))
    compare(bench, table)
    budgets(bench, table)


if __name__ == "__main__":
    main(*sys.argv[1:])
