"""Why each group got its scheme, in sentences."""

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.plan.planner import Costs
from codesign.plan.problem import Criterion, PlanProblem, Solution
from codesign.schemes.scheme import Scheme
from codesign.units import format_seconds, significant


def group_reasons(costs: Costs, problem: PlanProblem, solution: Solution, objective: Criterion) -> tuple[str, ...]:
    """Return one sentence per group: why this scheme and not the one that the objective alone would take."""
    terms, losses = problem.terms[objective].by_group, problem.terms[Criterion.QUALITY].by_group
    names = [scheme.name for scheme in costs.choices.schemes]
    reasons = []
    for g, picked in enumerate(solution.choice):
        allowed = np.flatnonzero(problem.allowed[g])
        best = allowed[np.argmin(terms[g, allowed])]
        if len(allowed) == 1:
            reasons.append(_only_choice(costs, g, picked))
        elif terms[g, picked] <= terms[g, best] * (1 + 1e-12):
            reasons.append(f"least {objective} of {len(allowed)} schemes")
        else:
            saved = describe_saving(objective, terms[g, picked] - terms[g, best])
            more = losses[g, best] - losses[g, picked]
            price = f"{significant(more)} nats more" if more > 0 else "more of another budget"
            reasons.append(f"{names[best]} would save {saved} for {price}")
    return tuple(reasons)


def _only_choice(costs: Costs, g: int, picked: int) -> str:
    others = [text for s, text in enumerate(costs.refused[g]) if s != picked and text]
    return others[0] if others else "the only scheme with a known loss"


def describe_saving(criterion: Criterion, value: float) -> str:
    """Return an amount of a criterion as text."""
    if criterion in (Criterion.TPOT, Criterion.TTFT, Criterion.THROUGHPUT, Criterion.COST):
        return format_seconds(value)
    unit = {Criterion.MEMORY: "bytes", Criterion.QUALITY: "nats", Criterion.ENERGY: "J"}[criterion]
    return f"{significant(value)} {unit}"


def scheme_mix(groups_weights: FloatArray, schemes: tuple[Scheme, ...]) -> str:
    """Return the share of weights per scheme, largest first, such as `W4A16-g128 92 %, BF16 8 %`."""
    shares: dict[str, float] = {}
    for weight, scheme in zip(groups_weights, schemes, strict=True):
        shares[scheme.name] = shares.get(scheme.name, 0.0) + float(weight)
    whole = sum(shares.values())
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share / whole:.0%}".replace("%", " %") for name, share in ordered)
