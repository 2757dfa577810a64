import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InfeasibleError
from codesign.plan.problem import Criterion, PlanProblem, Terms
from codesign.plan.solve import InfeasibleBudgetError, pareto_front, solve

CRITERIA = (Criterion.TPOT, Criterion.MEMORY, Criterion.QUALITY)


def random_problem(seed: int) -> PlanProblem:
    """Return up to 8 groups x 4 schemes x 2 KV formats; every third one has equal groups."""
    generator = np.random.default_rng(seed)
    groups, schemes, kv = generator.integers(1, 9), generator.integers(2, 5), generator.integers(1, 3)
    terms = {c: Terms(generator.random((groups, schemes)), generator.random(kv), generator.random()) for c in CRITERIA}
    if seed % 3 == 0:
        for one in terms.values():
            one.by_group[groups // 2 :] = one.by_group[0]
    allowed = generator.random((groups, schemes)) < 0.85
    allowed[:, 0] = True
    if seed % 3 == 0:
        allowed[groups // 2 :] = allowed[0]
    return PlanProblem(allowed, np.ones(kv, dtype=bool), terms)


def random_budgets(problem: PlanProblem, seed: int) -> dict[Criterion, float]:
    generator = np.random.default_rng(1000 + seed)
    groups = len(problem.allowed)
    return {c: generator.uniform(0.2, 0.7) * groups + 1 for c in (Criterion.MEMORY, Criterion.QUALITY)}


def brute_force(problem: PlanProblem, objective: Criterion, budgets: dict[Criterion, float]) -> float | None:
    """Return the best objective over every combination, or None."""
    groups, schemes = problem.allowed.shape
    every = np.indices((schemes,) * groups).reshape(groups, -1).T
    legal = every[problem.allowed[np.arange(groups), every].all(axis=1)]
    best = np.inf
    for kv in np.flatnonzero(problem.kv_allowed):
        values = {
            c: terms.by_group[np.arange(groups), legal].sum(axis=1) + terms.by_kv[kv] + terms.constant
            for c, terms in problem.terms.items()
        }
        within = np.all([values[c] <= limit for c, limit in budgets.items()], axis=0)
        best = min(best, values[objective][within].min(initial=np.inf))
    return None if best == np.inf else float(best)


@pytest.mark.parametrize("seed", range(200))
def test_solve_equals_brute_force(seed):
    problem = random_problem(seed)
    budgets = random_budgets(problem, seed)
    expected = brute_force(problem, Criterion.TPOT, budgets)
    if expected is None:
        with pytest.raises(InfeasibleError):
            solve(problem, Criterion.TPOT, budgets)
        return
    solution = solve(problem, Criterion.TPOT, budgets)
    assert solution.values[Criterion.TPOT] == pytest.approx(expected, rel=1e-9)
    assert all(solution.values[c] <= limit for c, limit in budgets.items())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(1.0, 3.0))
def test_a_looser_budget_is_never_worse(seed, factor):
    problem = random_problem(seed)
    budgets = random_budgets(problem, seed)
    try:
        tight = solve(problem, Criterion.TPOT, budgets)
    except InfeasibleError:
        return
    loose = solve(problem, Criterion.TPOT, {c: limit * factor for c, limit in budgets.items()})
    assert loose.values[Criterion.TPOT] <= tight.values[Criterion.TPOT] * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_problem_gives_the_same_plan(seed):
    problem = random_problem(seed)
    first, second = (solve(problem, Criterion.TPOT, {}) for _ in range(2))
    assert (first.choice == second.choice).all()
    assert first.kv_choice == second.kv_choice


def test_infeasible_names_the_budget_and_its_smallest_value():
    problem = random_problem(1)
    smallest = solve(problem, Criterion.MEMORY, {}).values[Criterion.MEMORY]
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(problem, Criterion.TPOT, {Criterion.MEMORY: smallest * 0.9})
    assert caught.value.criterion is Criterion.MEMORY
    assert caught.value.smallest == pytest.approx(smallest)
    solve(problem, Criterion.TPOT, {Criterion.MEMORY: smallest * (1 + 1e-9)})


def test_budgets_that_only_clash_name_what_relaxing_one_needs():
    terms = {
        Criterion.TPOT: Terms(np.array([[2.0, 1.0]]), np.zeros(1)),
        Criterion.MEMORY: Terms(np.array([[2.0, 1.0]]), np.zeros(1)),
        Criterion.QUALITY: Terms(np.array([[0.0, 3.0]]), np.zeros(1)),
    }
    problem = PlanProblem(np.ones((1, 2), dtype=bool), np.ones(1, dtype=bool), terms)
    with pytest.raises(InfeasibleBudgetError, match="stay within budget") as caught:
        solve(problem, Criterion.TPOT, {Criterion.MEMORY: 1.5, Criterion.QUALITY: 1.0})
    assert (caught.value.criterion, caught.value.smallest) == (Criterion.MEMORY, 2.0)


def test_among_equals_the_least_loss_is_taken():
    terms = {
        Criterion.TPOT: Terms(np.array([[1.0, 1.0, 2.0]]), np.zeros(1)),
        Criterion.QUALITY: Terms(np.array([[0.3, 0.1, 0.0]]), np.zeros(1)),
    }
    problem = PlanProblem(np.ones((1, 3), dtype=bool), np.ones(1, dtype=bool), terms)
    assert solve(problem, Criterion.TPOT, {}).choice.tolist() == [1]


def test_nothing_forbidden_is_chosen_even_if_it_is_best():
    terms = {Criterion.TPOT: Terms(np.array([[3.0, 1.0]]), np.zeros(2))}
    problem = PlanProblem(np.array([[True, False]]), np.array([False, True]), terms)
    solution = solve(problem, Criterion.TPOT, {})
    assert solution.choice.tolist() == [0]
    assert solution.kv_choice == 1


@pytest.mark.parametrize("seed", range(10))
def test_no_point_of_the_front_is_dominated(seed):
    front = pareto_front(random_problem(seed), (Criterion.TPOT, Criterion.QUALITY), {})
    points = [(s.values[Criterion.TPOT], s.values[Criterion.QUALITY]) for s in front]
    for a, b in itertools.permutations(points, 2):
        assert not (a[0] <= b[0] and a[1] <= b[1])


def test_many_different_groups_are_solved_to_a_small_gap():
    generator = np.random.default_rng(3)
    shape = np.tile([0.3, 0.1, 0.4, 0.2], 30)[:, None]
    bits = np.linspace(16, 3, 8)[None, :]
    loss = generator.lognormal(0, 0.3, (120, 1)) * shape * 4.0**-bits
    terms = {
        Criterion.TPOT: Terms(shape * bits * (1 + 0.02 * generator.random((1, 8))), np.zeros(1)),
        Criterion.QUALITY: Terms(loss, np.zeros(1)),
    }
    problem = PlanProblem(np.ones((120, 8), dtype=bool), np.ones(1, dtype=bool), terms)
    budget = float(loss[:, -3].sum())
    solution = solve(problem, Criterion.TPOT, {Criterion.QUALITY: budget})
    assert solution.gap_fraction <= 1e-4
    assert solution.values[Criterion.QUALITY] <= budget
