"""Which plans near the best are measured, and which of them is taken."""

import numpy as np
import pytest

from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction
from codesign.plan.finish import chosen, near_best
from codesign.plan.problem import Criterion, PlanProblem, Solution, Terms
from codesign.plan.solve import solve

GROUPS, SCHEMES = 12, 4


def a_problem(seed: int) -> PlanProblem:
    """Return a problem in which fewer bytes cost less time and more loss."""
    draws = np.random.default_rng(seed)
    sizes = draws.uniform(1, 2, (GROUPS, 1)) * np.array([16.0, 8, 6, 4])
    losses = draws.lognormal(0, 1, (GROUPS, 1)) * np.array([0.0, 0.001, 0.01, 0.1])
    none = np.zeros(1)
    terms = {
        Criterion.TPOT: Terms(sizes * 1e-3, none),
        Criterion.MEMORY: Terms(sizes, none),
        Criterion.QUALITY: Terms(losses, none),
    }
    return PlanProblem(np.ones((GROUPS, SCHEMES), dtype=bool), np.ones(1, dtype=bool), terms)


def measured(value: float) -> Prediction:
    return Prediction(value, value, value, Origin.MEASURED)


def solution(tpot: float, predicted: float = 0.0) -> Solution:
    return Solution(np.zeros(1, dtype=np.intp), 0, 0.0, {Criterion.TPOT: tpot, Criterion.QUALITY: predicted})


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_plans_near_the_best_are_distinct_and_begin_with_it(seed):
    problem = a_problem(seed)
    for objective, budgets in (
        (Criterion.TPOT, {Criterion.QUALITY: 0.3}),
        (Criterion.QUALITY, {Criterion.MEMORY: 110.0}),
    ):
        best = solve(problem, objective, budgets)
        found = near_best(problem, objective, budgets, best)
        assert (found[0].choice == best.choice).all()
        assert len({one.choice.tobytes() for one in found}) == len(found)
        for one in found:
            assert one.values == {name: terms.value(one.choice, 0) for name, terms in problem.terms.items()}
            assert one.values.get(Criterion.MEMORY, 0) <= budgets.get(Criterion.MEMORY, np.inf) * (1 + 1e-9)


def test_other_loss_budgets_bracket_the_given_one():
    problem = a_problem(1)
    budgets = {Criterion.QUALITY: 0.3}
    found = near_best(problem, Criterion.TPOT, budgets, solve(problem, Criterion.TPOT, budgets))
    losses = [one.values[Criterion.QUALITY] for one in found]
    assert min(losses) <= 0.15
    assert 0.3 < max(losses) <= 0.45


def test_losses_a_little_different_lead_to_other_plans():
    problem, budgets = a_problem(2), {Criterion.MEMORY: 110.0}
    assert len(near_best(problem, Criterion.QUALITY, budgets, solve(problem, Criterion.QUALITY, budgets))) > 1


def test_near_best_is_deterministic():
    problem, budgets = a_problem(2), {Criterion.MEMORY: 110.0}
    best = solve(problem, Criterion.QUALITY, budgets)
    first, second = (near_best(problem, Criterion.QUALITY, budgets, best) for _ in range(2))
    assert [one.choice.tolist() for one in first] == [one.choice.tolist() for one in second]


@pytest.mark.parametrize(
    ("losses", "limit", "taken"),
    [
        ((0.9, 0.4, 0.45), 0.5, 1),  # the fastest breaks the budget; of the others the faster
        ((0.4, 0.3, 0.2), 0.5, 0),
        ((0.9, 0.8, 0.7), 0.5, 2),  # none keeps it: the least loss
        ((0.9, 0.8, 0.7), None, 0),
    ],
)
def test_the_fastest_within_the_measured_budget_is_taken(losses, limit, taken):
    solutions = [solution(1.0), solution(2.0), solution(3.0)]
    assert chosen(solutions, [measured(loss) for loss in losses], Criterion.TPOT, limit) == taken


def test_the_least_measured_loss_is_taken_where_loss_is_minimised():
    solutions = [solution(1.0, 0.1), solution(2.0, 0.2)]
    assert chosen(solutions, [measured(0.3), measured(0.2)], Criterion.QUALITY, None) == 1
