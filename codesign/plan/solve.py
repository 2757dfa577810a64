"""The exact solution of a planning problem: a multiple-choice knapsack solved by HiGHS through scipy."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from codesign.cost.arrays import FloatArray
from codesign.errors import InfeasibleError
from codesign.plan.problem import Criterion, PlanProblem, Solution

PROVEN_GAP = 1e-7
ROUGH_GAP = 1e-4
# Nodes are limited instead of seconds, so that the same problem gives the same plan on every machine; the gap that is
# left is printed. A node costs time in proportion to the options that remain.
NODES_TIMES_CELLS = 1_000_000
# HiGHS accepts a constraint that is exceeded by 1e-6; budgets are exact, so the solver gets a slightly smaller one.
SOLVER_SLACK = 1.5e-6
GOAL_SCALE = 1e3  # HiGHS stops at an absolute gap of 1e-6; the objective is scaled well above it


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
    program = _program(problem, classes, objective, budgets, slack)
    solved = _branch_and_bound(program)
    if solved is None:
        return None
    x, gap = solved
    cell_class, cell_scheme = cells
    choice = _spread(classes, cell_class, cell_scheme, np.rint(x[: len(cell_class)]).astype(np.intp))
    return choice, int(kv_index[int(np.argmax(x[len(cell_class) :]))]), gap


@dataclass(frozen=True, slots=True)
class IntegerProgram:
    """Minimise goal · x with `equal` x = `exactly` and `budget` x <= `room`, 0 <= x <= upper, x integer."""

    goal: FloatArray
    upper: FloatArray
    equal: csr_array
    exactly: FloatArray
    budget: csr_array
    room: FloatArray


def _program(
    problem: PlanProblem, classes: Classes, objective: Criterion, budgets: Mapping[Criterion, float], slack: float
) -> IntegerProgram:
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


def _branch_and_bound(program: IntegerProgram) -> tuple[FloatArray, float] | None:
    """Return x and the proven relative gap, or None if infeasible.

    A rough solution bounds the objective; every variable whose reduced cost in the linear relaxation exceeds the
    distance between the two cannot be part of a better one and is dropped before the exact search.
    """
    rough = _milp(program, ROUGH_GAP)
    if rough is None or rough[1] <= PROVEN_GAP:
        return rough
    relaxed = linprog(
        program.goal,
        A_ub=program.budget if len(program.room) else None,
        b_ub=program.room if len(program.room) else None,
        A_eq=program.equal,
        b_eq=program.exactly,
        bounds=np.stack([np.zeros_like(program.upper), program.upper], axis=1),
        method="highs",
    )
    distance = float(program.goal @ rough[0]) - relaxed.fun
    reduced_cost = (
        program.goal - program.equal.T @ relaxed.eqlin.marginals - program.budget.T @ relaxed.ineqlin.marginals
    )
    core = np.flatnonzero((reduced_cost <= distance * (1 + 1e-9)) | (rough[0] > 0))
    smaller = IntegerProgram(
        program.goal[core],
        program.upper[core],
        program.equal[:, core],
        program.exactly,
        program.budget[:, core],
        program.room,
    )
    exact = _milp(smaller, PROVEN_GAP)
    if exact is None or smaller.goal @ exact[0] > program.goal @ rough[0]:
        return rough
    x = np.zeros_like(program.goal)
    x[core] = exact[0]
    return x, exact[1]


def _milp(program: IntegerProgram, relative_gap: float) -> tuple[FloatArray, float] | None:
    constraints = [LinearConstraint(program.equal, program.exactly, program.exactly)]
    if len(program.room):
        constraints.append(LinearConstraint(program.budget, -np.inf, program.room))
    result = milp(
        program.goal,
        integrality=np.ones_like(program.upper),
        bounds=Bounds(0.0, program.upper),
        constraints=constraints,
        options={"mip_rel_gap": relative_gap, "node_limit": max(100, NODES_TIMES_CELLS // len(program.goal))},
    )
    if result.x is None:
        return None
    return np.rint(result.x), max(0.0, float(result.mip_gap or 0.0))


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
