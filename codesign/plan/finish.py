"""The finish of a plan whose weights are at hand: the real loss of the best few plans, and a choice by it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codesign.cost.deployment import Assignment
from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction
from codesign.errors import InfeasibleError
from codesign.plan.problem import Criterion, PlanProblem, Solution
from codesign.plan.solve import solve

if TYPE_CHECKING:
    from codesign.quality.divergence import Divergence
    from codesign.schemes.scheme import Scheme

# A table of isolated losses is off by some ten percent for a whole plan: these budgets bracket the true one.
_BUDGET_FACTORS = (0.5, 0.7, 0.85, 1.2, 1.5)
# Where the loss is minimised, other losses that the table could as well have found: spread in ln loss, and draws.
_SPREAD, _DRAWS = 0.2, 5
_WINDOW_COUNT, _WINDOW_TOKENS = 8, 512
_NORMAL_80 = 1.2816


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights and the text lie that plans are measured with."""

    model: str
    text: Path

    @property
    def words(self) -> str:
        """Return what is measured."""
        return f"KL divergence on {_WINDOW_COUNT} windows of {_WINDOW_TOKENS} tokens of {self.text.name}"

    def losses(self, plans: Sequence[Assignment]) -> tuple[Prediction, ...]:
        """Return the KL of each plan against the unquantized model, weights rounded to nearest."""
        from codesign.quality.divergence import divergences, mean_divergence, run_blocks
        from codesign.quality.rounded import RoundedSource
        from codesign.quality.text import file_windows
        from codesign.quantize.kv_cache import quantized_kv
        from codesign.quantize.network import Network
        from codesign.quantize.source import open_source

        source = open_source(self.model)
        windows = file_windows(source, self.text, _WINDOW_TOKENS, _WINDOW_COUNT)
        exact = Network(source)
        exact_ends = run_blocks(exact, windows, _silent)
        found = []
        for plan in plans:
            other = Network(RoundedSource(source, _by_layer(plan)))
            with quantized_kv(other, plan.kv):
                ends = run_blocks(other, windows, _silent)
            found.append(_prediction(mean_divergence(divergences(exact, exact_ends, other, ends))))
        return tuple(found)


def _silent(_: str) -> None:
    """Say nothing: a plan is printed when it is made."""


def _by_layer(plan: Assignment) -> "Mapping[str, Scheme]":
    return {
        layer.name: scheme
        for group, scheme in zip(plan.groups, plan.schemes, strict=True)
        if scheme.quantized
        for layer in group.layers
    }


def _prediction(kl: "Divergence") -> Prediction:
    value, error = max(kl.kl_nats, 0.0), _NORMAL_80 * kl.standard_error_nats
    return Prediction(value, max(value - error, 0.0), value + error, Origin.MEASURED)


def near_best(
    problem: PlanProblem, objective: Criterion, budgets: Mapping[Criterion, float], best: Solution
) -> tuple[Solution, ...]:
    """Return the best plan and some others that would be the best if losses were a little different."""
    tried = [best]
    if objective is Criterion.QUALITY or Criterion.QUALITY not in budgets:
        draws = np.random.default_rng(0)
        for _ in range(_DRAWS):
            tried.append(_under_other_losses(problem, objective, budgets, draws))
    else:
        for factor in _BUDGET_FACTORS:
            limit = budgets[Criterion.QUALITY] * factor
            tried += _solved(problem, objective, {**budgets, Criterion.QUALITY: limit})
    distinct: dict[tuple[bytes, int], Solution] = {}
    for solution in tried:
        distinct.setdefault((solution.choice.tobytes(), solution.kv_choice), solution)
    return tuple(distinct.values())


def _solved(problem: PlanProblem, objective: Criterion, budgets: Mapping[Criterion, float]) -> list[Solution]:
    try:
        return [solve(problem, objective, budgets)]
    except InfeasibleError:
        return []


def _under_other_losses(
    problem: PlanProblem, objective: Criterion, budgets: Mapping[Criterion, float], draws: np.random.Generator
) -> Solution:
    """Return the best plan under losses drawn around the table's, with the values of the true table."""
    terms = problem.terms[Criterion.QUALITY]
    factors = np.exp(_SPREAD * draws.standard_normal(terms.by_group.shape))
    other = {**problem.terms, Criterion.QUALITY: replace(terms, by_group=terms.by_group * factors)}
    found = solve(replace(problem, terms=other), objective, budgets)
    values = {name: one.value(found.choice, found.kv_choice) for name, one in problem.terms.items()}
    return replace(found, values=values)


def chosen(
    solutions: Sequence[Solution], losses: Sequence[Prediction], objective: Criterion, max_loss_nats: float | None
) -> int:
    """Return which solution is best by its measured loss.

    That is the one with the least loss where loss is minimised, else the best one within the loss budget; if none is,
    the one that exceeds it least.
    """
    numbers = range(len(solutions))
    if objective is not Criterion.QUALITY:
        limit = math.inf if max_loss_nats is None else max_loss_nats
        within = [i for i in numbers if losses[i].value <= limit]
        if within:
            return min(within, key=lambda i: (solutions[i].values[objective], losses[i].value))
    return min(numbers, key=lambda i: losses[i].value)
