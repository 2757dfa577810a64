"""Why a plan is what it is: where the ideal gain went, and why each group got its scheme."""

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.step import (
    Step,
    attention_kernels,
    communication_kernels,
    elementwise_kernels,
    group_times,
    total_stage,
)
from codesign.cost.traffic import expected_experts_hit
from codesign.plan.file import GainStep
from codesign.plan.planner import Costs
from codesign.plan.problem import Criterion, PlanProblem, Solution
from codesign.schemes.scheme import Scheme
from codesign.units import format_seconds, significant


def gain_steps(deployment: Deployment, plan: Assignment, baseline: Assignment, step: Step) -> tuple[GainStep, ...]:
    """Return the gain over the baseline as causes are added: bits alone first, the whole step last."""
    causes = (
        "bits alone, quantized layers only",
        "layers that stay in 16 bits",
        "scales and zero points",
        "what the kernels reach",
        "fixed time per kernel",
        "attention and KV cache",
        "element-wise kernels",
        "links between GPUs",
    )
    columns = [_cumulative_s(deployment, assignment, plan, step) for assignment in (baseline, plan)]
    gains = columns[0] / columns[1]
    return tuple(GainStep(cause, float(gain)) for cause, gain in zip(causes, gains, strict=True))


def _cumulative_s(deployment: Deployment, assignment: Assignment, plan: Assignment, step: Step) -> FloatArray:
    """Return seconds after each cause; `plan` says which groups count as quantized."""
    target = deployment.target
    bandwidth = target.hardware.memory.sustained_bytes_per_s * target.gpu_count
    reached = _weights_read(deployment, assignment, step)
    quantized = np.array([scheme.quantized for scheme in plan.schemes])
    weights = np.array([group.weight_count for group in assignment.groups]) * reached
    nominal_s = weights * np.array([scheme.weights.bits for scheme in assignment.schemes]) / 8 / bandwidth
    stored_s = weights * np.array([scheme.bits_per_weight for scheme in assignment.schemes]) / 8 / bandwidth
    busy_s, fixed_s = _busy_and_fixed(assignment, deployment, step)
    model = deployment.model
    rest = [
        total_stage(kernels).seconds.value
        for kernels in (
            attention_kernels(model, assignment.kv, target, step),
            elementwise_kernels(model, target, step),
            communication_kernels(model, target, step),
        )
    ]
    some = quantized if quantized.any() else ~quantized
    with_fixed = busy_s + fixed_s
    return np.array(
        [nominal_s[some].sum(), nominal_s.sum(), stored_s.sum(), busy_s, with_fixed, *(with_fixed + np.cumsum(rest))]
    )


def _weights_read(deployment: Deployment, assignment: Assignment, step: Step) -> FloatArray:
    """Return the share of each group's weights that the step reads: all, or the experts that are hit."""
    shares = []
    for group in assignment.groups:
        experts = group.experts
        if experts is None:
            shares.append(1.0)
            continue
        count, top_k = np.float64(experts.expert_count), np.float64(experts.top_k)
        hit = expected_experts_hit(np.asarray(step.tokens), np.asarray(count), np.asarray(top_k))
        shares.append(float(hit) / experts.expert_count)
    return np.array(shares)


def _busy_and_fixed(assignment: Assignment, deployment: Deployment, step: Step) -> tuple[float, float]:
    busy_s = fixed_s = 0.0
    for scheme in dict.fromkeys(assignment.schemes):
        members = [g for g, s in zip(assignment.groups, assignment.schemes, strict=True) if s == scheme]
        times = group_times(members, scheme, deployment.target, step)
        busy_s += float((times.predicted_s - times.fixed_s).sum())
        fixed_s += float(times.fixed_s.sum())
    return busy_s, fixed_s


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
