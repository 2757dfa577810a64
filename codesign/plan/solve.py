"""The exact solution of a planning problem: a multiple-choice knapsack solved by HiGHS through scipy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray
from codesign.errors import InfeasibleError
from codesign.plan.problem import Criterion, PlanProblem, Solution

if TYPE_CHECKING:
    from codesign.plan.integer import IntegerProgram

# HiGHS accepts a constraint that is exceeded by 1e-6; budgets are exact, so the solver gets a slightly smaller one.
SOLVER_SLACK = 1.5e-6


@dataclass(frozen=True, slots=True)
class Classes:
    """Groups that are equal in every criterion in use, decided together: `count[c]` of them in class `of_group[g]`."""

    representative: npt.NDArray[np.intp]
    of_group: npt.NDArray[np.intp]
    count: npt.NDArray[np.intp]
    keep: npt.NDArray[np.bool_]


def solve(problem: PlanProblem, objective: Criterion, budgets: Mapping[Criterion, float]) -> Solution:
    """Return the choice with the smallest objective within the budgets; among equals the one with the least loss.

    InfeasibleError names the tightest budget and the smallest feasible value. Deterministic.
    """
    best = _minimise(problem, objective, budgets)
    if best is None:
        raise infeasible(problem, budgets)
    return _gentlest_of_equals(problem, best, (objective, *budgets))


def _gentlest_of_equals(problem: PlanProblem, solution: Solution, used: tuple[Criterion, ...]) -> Solution:
    """Move each group to the option with the least loss among those that cost no more in any criterion in use."""
    if Criterion.QUALITY not in problem.terms:
        return solution
    groups = np.arange(len(solution.choice))
    no_worse = problem.allowed.copy()
    for criterion in used:
        by_group = problem.terms[criterion].by_group
        no_worse &= by_group <= by_group[groups, solution.choice][:, np.newaxis]
    loss = np.where(no_worse, problem.terms[Criterion.QUALITY].by_group, np.inf)
    better = loss.min(axis=1) < loss[groups, solution.choice]
    choice = np.where(better, loss.argmin(axis=1), solution.choice)
    values = {criterion: terms.value(choice, solution.kv_choice) for criterion, terms in problem.terms.items()}
    return Solution(choice, solution.kv_choice, solution.gap_fraction, values)


def infeasible(problem: PlanProblem, budgets: Mapping[Criterion, float]) -> InfeasibleError:
    """Return the error that names the tightest budget: the one furthest from what is possible at all.

    If each budget could be met alone, it is the one that needs the smallest relative relaxation while the others hold.
    """
    alone = {criterion: _smallest(problem, criterion, {}) for criterion in budgets}
    broken = {c: v for c, v in alone.items() if v is not None and v > budgets[c]}
    if broken:
        tightest = max(broken, key=lambda c: broken[c] / max(budgets[c], 1e-300))
        return InfeasibleBudgetError(tightest, budgets[tightest], broken[tightest], ())
    relaxed: dict[Criterion, float] = {}
    for criterion in budgets:
        others = {c: limit for c, limit in budgets.items() if c is not criterion}
        value = _smallest(problem, criterion, others)
        if value is not None:
            relaxed[criterion] = value
    if not relaxed:
        return InfeasibleError("No plan meets any pair of these budgets; relax all of them and tighten one at a time.")
    tightest = min(relaxed, key=lambda c: relaxed[c] / max(budgets[c], 1e-300))
    others_held = tuple(c for c in budgets if c is not tightest)
    return InfeasibleBudgetError(tightest, budgets[tightest], relaxed[tightest], others_held)


class InfeasibleBudgetError(InfeasibleError):
    """No plan: `criterion` is limited to `limit`; the smallest value possible, `held` budgets kept, is `smallest`."""

    def __init__(self, criterion: Criterion, limit: float, smallest: float, held: tuple[Criterion, ...]) -> None:
        """Keep the figures, so that a caller can state them in the user's units."""
        kept = f" while {' and '.join(held)} stay within budget" if held else ""
        super().__init__(
            f"No plan: {criterion} is limited to {limit:.6g}, the smallest possible{kept} is {smallest:.6g}."
        )
        self.criterion, self.limit, self.smallest, self.held = criterion, limit, smallest, held


def _smallest(problem: PlanProblem, criterion: Criterion, budgets: Mapping[Criterion, float]) -> float | None:
    solution = _minimise(problem, criterion, budgets)
    return None if solution is None else solution.values[criterion]


def _minimise(
    problem: PlanProblem, objective: Criterion, budgets: Mapping[Criterion, float], slack: float = SOLVER_SLACK
) -> Solution | None:
    """Return the best solution within the budgets, or None if there is none."""
    unbound = _unbound(problem, objective, budgets)
    if unbound is not None:
        return unbound
    used = tuple(dict.fromkeys((objective, *budgets)))
    classes = _classes(problem, used)
    choice = _choose(problem, classes, objective, budgets, slack)
    if choice is None and slack > 0:
        choice = _choose(problem, classes, objective, budgets, 0.0)  # feasible only exactly on the budget
    if choice is None:
        return None
    picked, kv_choice, gap = choice
    values = {criterion: terms.value(picked, kv_choice) for criterion, terms in problem.terms.items()}
    if any(values[c] > limit * (1 + 1e-12) + 1e-300 for c, limit in budgets.items()):
        return None
    return Solution(picked, kv_choice, gap, values)


def _unbound(problem: PlanProblem, objective: Criterion, budgets: Mapping[Criterion, float]) -> Solution | None:
    """Return each group's best option if together they meet every budget: then nothing can be better."""
    if not problem.allowed.any(axis=1).all() or not problem.kv_allowed.any():
        return None
    terms = problem.terms[objective]
    cost = np.where(problem.allowed, terms.by_group, np.inf)
    choice = cost.argmin(axis=1)
    kv_choice = int(np.where(problem.kv_allowed, terms.by_kv, np.inf).argmin())
    values = {criterion: one.value(choice, kv_choice) for criterion, one in problem.terms.items()}
    if any(not values[criterion] <= limit for criterion, limit in budgets.items()):
        return None
    return Solution(choice, kv_choice, 0.0, values)


def _classes(problem: PlanProblem, used: tuple[Criterion, ...]) -> Classes:
    """Merge equal groups and drop options that another option beats or equals in every criterion in use."""
    columns = [np.where(problem.allowed, problem.terms[criterion].by_group, np.inf) for criterion in used]
    rows = np.concatenate(columns, axis=1)
    _, representative, of_group, count = np.unique(
        rows, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    values = np.stack([column[representative] for column in columns])  # [criteria, classes, schemes]
    keep = np.isfinite(values).all(axis=0)
    schemes = keep.shape[1]
    for s in range(schemes):
        for other in range(schemes):
            if other == s:
                continue
            not_worse = (values[:, :, other] <= values[:, :, s]).all(axis=0)
            equal = (values[:, :, other] == values[:, :, s]).all(axis=0)
            keep[:, s] &= ~(keep[:, other] & not_worse & (~equal | (other < s)))
    return Classes(representative, of_group.ravel(), count, keep)


def _choose(
    problem: PlanProblem, classes: Classes, objective: Criterion, budgets: Mapping[Criterion, float], slack: float
) -> tuple[npt.NDArray[np.intp], int, float] | None:
    if not classes.keep.any(axis=1).all() or not problem.kv_allowed.any():
        return None
    cells = np.nonzero(classes.keep)
    kv_index = np.flatnonzero(problem.kv_allowed)
    # Many plans are settled before HiGHS is needed, and importing scipy takes longer than making such a plan.
    from codesign.plan.integer import branch_and_bound

    solved = branch_and_bound(_program(problem, classes, objective, budgets, slack))
    if solved is None:
        return None
    x, gap = solved
    cell_class, cell_scheme = cells
    choice = _spread(classes, cell_class, cell_scheme, np.rint(x[: len(cell_class)]).astype(np.intp))
    return choice, int(kv_index[int(np.argmax(x[len(cell_class) :]))]), gap


def _program(
    problem: PlanProblem, classes: Classes, objective: Criterion, budgets: Mapping[Criterion, float], slack: float
) -> "IntegerProgram":
    from scipy.sparse import csr_array

    from codesign.plan.integer import GOAL_SCALE, IntegerProgram

    cell_class, cell_scheme = np.nonzero(classes.keep)
    kv_index = np.flatnonzero(problem.kv_allowed)
    group_of_cell = classes.representative[cell_class]

    def coefficients(criterion: Criterion) -> FloatArray:
        terms = problem.terms[criterion]
        return np.concatenate([terms.by_group[group_of_cell, cell_scheme], terms.by_kv[kv_index]])

    goal = coefficients(objective)
    scales = [max(abs(limit), 1e-300) for limit in budgets.values()]
    rows = [coefficients(criterion) / scale for criterion, scale in zip(budgets, scales, strict=True)]
    room = [
        (limit - problem.terms[c].constant) / s - slack for (c, limit), s in zip(budgets.items(), scales, strict=True)
    ]
    owner = np.concatenate([cell_class, np.full(len(kv_index), len(classes.count))])
    equal = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    return IntegerProgram(
        goal=goal * (GOAL_SCALE / (np.abs(goal).max() or 1.0)),
        upper=np.concatenate([classes.count[cell_class], np.ones(len(kv_index))]).astype(float),
        equal=equal,
        exactly=np.concatenate([classes.count, [1]]).astype(float),
        budget=csr_array(np.array(rows).reshape(len(rows), len(owner))),
        room=np.array(room),
    )


def _spread(
    classes: Classes,
    cell_class: npt.NDArray[np.intp],
    cell_scheme: npt.NDArray[np.intp],
    amounts: npt.NDArray[np.intp],
) -> npt.NDArray[np.intp]:
    """Hand the amounts of each class to its groups in order, so that equal blocks stay together."""
    choice = np.empty(len(classes.of_group), dtype=np.intp)
    for index in range(len(classes.count)):
        cells = cell_class == index
        choice[classes.of_group == index] = np.repeat(cell_scheme[cells], amounts[cells])
    return choice


def pareto_front(
    problem: PlanProblem, pair: tuple[Criterion, Criterion], budgets: Mapping[Criterion, float], points: int = 12
) -> tuple[Solution, ...]:
    """Return solutions from the best of the first criterion to the best of the second, none dominated by another.

    The second criterion is bounded at `points` evenly spaced values between its two extremes.
    """
    first, second = pair
    cheapest = solve(problem, first, budgets)
    gentlest = solve(problem, second, budgets)
    found = {(round(s.values[first], 15), round(s.values[second], 15)): s for s in (cheapest, gentlest)}
    for limit in np.linspace(gentlest.values[second], cheapest.values[second], points + 2)[1:-1]:
        tightened = dict(budgets)
        tightened[second] = min(float(limit), budgets.get(second, np.inf))
        solution = _minimise(problem, first, tightened)
        if solution is not None:
            found[(round(solution.values[first], 15), round(solution.values[second], 15))] = solution
    candidates = sorted(found.values(), key=lambda s: (s.values[first], s.values[second]))
    front: list[Solution] = []
    for solution in candidates:
        if not front or solution.values[second] < front[-1].values[second]:
            front.append(solution)
    return tuple(front)
