"""From a request to a plan: gather costs, solve, explain."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from codesign import __version__
from codesign.cost.advice import deployment_advice, uniform_kv_formats, waterfall_advice
from codesign.cost.advice_text import Advice
from codesign.cost.calibration import own_sheets
from codesign.cost.curve import break_even, gain_curve
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.inference import InferencePrediction, predict_inference
from codesign.cost.prediction import Prediction, add_predictions
from codesign.cost.sheet import sheet_title
from codesign.cost.step import decode_step, prefill_step
from codesign.cost.waterfall import gain_steps
from codesign.errors import InfeasibleError
from codesign.model.groups import FusedGroup
from codesign.plan.explain import group_reasons, scheme_mix
from codesign.plan.file import (
    FORMAT_VERSION,
    GroupPlan,
    MeasuredPlan,
    ParetoFront,
    ParetoPoint,
    Plan,
    Refusal,
    Totals,
)
from codesign.plan.finish import Weights, chosen, near_best
from codesign.plan.planner import Choices, Costs, build_problem, gather_costs
from codesign.plan.problem import Criterion, PlanProblem, Solution
from codesign.plan.solve import pareto_front, solve
from codesign.quality.estimate import perplexity_ratio
from codesign.schemes.capability import candidate_kv_formats, refused_schemes
from codesign.schemes.kv import KvFormat
from codesign.schemes.scheme import Scheme
from codesign.units import format_gib, format_percent, significant


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user asks; budgets are in SI units and nats, per criterion."""

    deployment: Deployment
    choices: Choices
    objective: Criterion
    budgets: Mapping[Criterion, float]
    method: str = "default"
    pareto: tuple[Criterion, Criterion] | None = None
    warnings: tuple[str, ...] = ()
    weights: Weights | None = None


def make_plan(request: PlanRequest) -> Plan:
    """Return the best plan within the budgets; InfeasibleError names the budget that is too tight."""
    deployment, choices = request.deployment, request.choices
    costs = gather_costs(deployment, choices)
    problem = build_problem(deployment, costs)
    _need_choices(costs, problem)
    solution = solve(problem, request.objective, request.budgets)
    loss, finish = _total_loss(costs, solution), None
    if request.weights is not None:
        finish = _finish(
            request, request.weights, costs, near_best(problem, request.objective, request.budgets, solution)
        )
        solution, loss = finish.solution, finish.loss
    plan = costs.assignment(solution)
    sixteen = choices.schemes[0]
    baseline = Assignment(plan.groups, (sixteen,) * len(plan.groups), sixteen, sixteen_bit_kv(deployment))
    everywhere = used_everywhere(costs, baseline)
    return replace(
        described_plan(deployment, plan, baseline, loss),
        objective=str(request.objective),
        budgets={str(criterion): limit for criterion, limit in request.budgets.items()},
        method=request.method,
        groups=_group_plans(request, costs, problem, solution),
        break_even=tuple(break_even(deployment, one, baseline, name) for name, one in everywhere.items()),
        refused=_refused(deployment, choices),
        pareto=_pareto(request, costs, problem),
        gap_fraction=solution.gap_fraction,
        warnings=(*request.warnings, *(finish.warnings if finish else ())),
        advice=_advice(deployment, plan, baseline, everywhere),
        measured=finish.plans if finish else (),
        measured_with=request.weights.words if request.weights else "",
    )


@dataclass(frozen=True, slots=True)
class _Finished:
    """What measuring the best few plans led to."""

    solution: Solution
    loss: Prediction
    plans: tuple[MeasuredPlan, ...]
    warnings: tuple[str, ...]


def _finish(request: PlanRequest, weights: Weights, costs: Costs, solutions: tuple[Solution, ...]) -> _Finished:
    """Measure plans near the best with the real weights and take the best by that."""
    assignments = [costs.assignment(solution) for solution in solutions]
    losses = weights.losses(assignments)
    limit = request.budgets.get(Criterion.QUALITY)
    taken = chosen(solutions, losses, request.objective, limit)
    counts = np.array([group.weight_count for group in costs.groups], dtype=float)
    plans = tuple(
        MeasuredPlan(
            scheme_mix(counts, one.schemes), s.values[request.objective], s.values[Criterion.QUALITY], loss, i == taken
        )
        for i, (s, one, loss) in enumerate(zip(solutions, assignments, losses, strict=True))
    )
    warnings: tuple[str, ...] = ()
    if limit is not None and losses[taken].value > limit:
        warnings = (
            f"None of {len(plans)} plans measured keeps the loss budget of {significant(limit)} nats; this one loses "
            "least. Give a wider budget, or better losses with codesign sensitivity.",
        )
    return _Finished(solutions[taken], losses[taken], plans, warnings)


def described_plan(deployment: Deployment, plan: Assignment, baseline: Assignment, loss: Prediction | None) -> Plan:
    """Return what is predicted for an assignment beside 16 bits; how it was decided is left empty."""
    predicted, unquantized = predict_inference(deployment, plan), predict_inference(deployment, baseline)
    target, model = deployment.target, deployment.model
    decode, prefill = decode_step(deployment.workload), prefill_step(deployment.workload)
    gains = (
        gain_curve(deployment, plan, baseline, decode).at(0),
        gain_curve(deployment, plan, baseline, prefill).at(0),
    )
    sixteen = baseline.embedding.name
    return Plan(
        format_version=FORMAT_VERSION,
        codesign_version=__version__,
        hardware=target.hardware.name,
        hardware_digest=target.hardware.digest,
        model=model.name,
        model_digest=model.digest,
        library=target.library,
        gpu_count=target.gpu_count,
        expert_parallel=target.expert_parallel,
        workload=deployment.workload,
        objective="",
        budgets={},
        method="",
        kv=plan.kv.name,
        baseline_scheme=sixteen,
        verdict=verdict(plan, sixteen, (predicted, unquantized), gains, loss),
        fits=predicted.fits,
        capacity_bytes=deployment.capacity_bytes,
        totals=_totals(predicted),
        baseline=_totals(unquantized),
        baseline_fits=unquantized.fits,
        loss_nats=loss,
        groups=(),
        decode_gain_steps=gain_steps(deployment, plan, baseline, decode),
        prefill_gain_steps=gain_steps(deployment, plan, baseline, prefill),
        break_even=(),
        refused=(),
        pareto=None,
        gap_fraction=0.0,
        warnings=(),
        kernel_sheets=tuple(sheet_title(sheet) for sheet in own_sheets(target)),
        engine=deployment.engine.name,
        thread_count=deployment.thread_count,
    )


def sixteen_bit_kv(deployment: Deployment) -> KvFormat:
    """Return the KV format of the unquantized model."""
    return candidate_kv_formats(deployment.target.hardware, deployment.target.library)[0]


def _totals(predicted: InferencePrediction) -> Totals:
    return Totals(
        ttft_s=predicted.ttft_s,
        tpot_s=predicted.tpot_s,
        tokens_per_s=predicted.tokens_per_s,
        energy_per_token_joule=predicted.energy_per_token_joule,
        usd_per_million_tokens=predicted.usd_per_million_tokens,
        memory=predicted.memory,
        largest_batch=predicted.largest_batch,
        largest_context_tokens=predicted.largest_context_tokens,
    )


def _need_choices(costs: Costs, problem: PlanProblem) -> None:
    """Raise if some group has no scheme at all: none runs, or none has a known loss."""
    for g in np.flatnonzero(~problem.allowed.any(axis=1)):
        unknown = [s.name for s, why in zip(costs.choices.schemes, costs.refused[g], strict=True) if not why]
        why = costs.refused[g][0]
        if unknown:
            why = f"the loss of {', '.join(unknown)} is unknown; --allow-unknown-quality lets them in"
        raise InfeasibleError(f"No plan: {costs.groups[g].label} has no scheme to choose: {why}.")
    if not problem.kv_allowed.any():
        names = ", ".join(kv.name for kv in costs.choices.kv_formats)
        raise InfeasibleError(f"No plan: the loss of KV in {names} is unknown; --allow-unknown-quality lets it in.")


def _refused(deployment: Deployment, choices: Choices) -> tuple[Refusal, ...]:
    """Return what was not considered: what does not run there, and what nobody measured."""
    target = deployment.target
    cannot = [Refusal(s.name, why) for s, why in refused_schemes(target.hardware, target.library)]
    unknown = [] if choices.allow_unknown_quality else list((choices.quality.unknown or {}).items())
    return (*cannot, *(Refusal(name, f"Quality unknown: {why}") for name, why in unknown))


def _total_loss(costs: Costs, solution: Solution) -> Prediction | None:
    """Return the loss of the whole plan, None if any part of it is unknown."""
    quality, names = costs.choices.quality, [scheme.name for scheme in costs.choices.schemes]
    cells = [quality.group_loss(g.key, names[s]) for g, s in zip(costs.groups, solution.choice, strict=True)]
    cells.append(quality.kv_loss(costs.choices.kv_formats[solution.kv_choice].name))
    known = [cell for cell in cells if cell is not None]
    return add_predictions(known) if len(known) == len(cells) else None


def verdict(
    plan: Assignment,
    baseline_name: str,
    predictions: tuple[InferencePrediction, InferencePrediction],
    gains: tuple[Prediction, Prediction],
    loss: Prediction | None,
) -> str:
    """Return in one sentence what to run, what it gains, whether it fits and what it loses.

    `predictions` are those of the plan and of the baseline, `gains` those of decode and prefill.
    """
    predicted, unquantized = predictions
    weights = np.array([group.weight_count for group in plan.groups], dtype=float)
    faster, prefill = gains
    need, capacity = predicted.memory.total_bytes, predicted.capacity_bytes
    fits = f"{format_gib(need)} of {format_gib(capacity)}, it fits"
    if not predicted.fits:
        fits = f"{format_gib(need)} does not fit into {format_gib(capacity)}"
    elif not unquantized.fits:
        fits += f" (16 bits needs {format_gib(unquantized.memory.total_bytes)} and does not)"
    quality = "its quality loss is unknown"
    if loss is not None:
        low, value, high = (format_percent(perplexity_ratio(x) - 1) for x in (loss.low, loss.value, loss.high))
        quality = f"perplexity +{value} ({low} to {high})"
    return (
        f"Run {scheme_mix(weights, plan.schemes)} of the weights with the KV cache in {plan.kv.name}: "
        f"{_times(faster)} the decode speed of {baseline_name} and {_times(prefill)} its prefill speed; "
        f"{fits}; {quality}."
    )


def _times(ratio: Prediction) -> str:
    if ratio.low == ratio.high:
        return f"{ratio.value:.2f}x"
    return f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f}x)"


def _group_plans(request: PlanRequest, costs: Costs, problem: PlanProblem, solution: Solution) -> tuple[GroupPlan, ...]:
    reasons = group_reasons(costs, problem, solution, request.objective)
    schemes = costs.choices.schemes
    plans = []
    for g, (group, s) in enumerate(zip(costs.groups, solution.choice, strict=True)):
        decode, prefill = costs.decode[s], costs.prefill[s]
        plans.append(
            GroupPlan(
                block_index=group.block_index,
                name=group.name,
                scheme=schemes[s].name,
                bits_per_weight=schemes[s].bits_per_weight,
                memory_bytes=float(costs.memory_bytes[g, s]),
                decode_s=decode.of_group(g),
                prefill_s=prefill.of_group(g),
                bound=decode.bound[g],
                loss_nats=costs.choices.quality.group_loss(group.key, schemes[s].name),
                method=_method(costs, group, schemes[s]),
                reason=reasons[g],
            )
        )
    return tuple(plans)


def _method(costs: Costs, group: FusedGroup, scheme: Scheme) -> str:
    estimate = costs.choices.quality.estimate(group.key, scheme.name)
    return "" if estimate is None or not scheme.quantized else estimate.method


def used_everywhere(costs: Costs, baseline: Assignment) -> dict[str, Assignment]:
    """Return each quantized scheme used wherever it may be, and each KV format, by name."""
    choices = costs.choices
    found = {}
    for s, scheme in enumerate(choices.schemes):
        if not scheme.quantized or not (costs.refused[:, s] == "").any():
            continue
        schemes = tuple(
            scheme if text == "" else kept for text, kept in zip(costs.refused[:, s], baseline.schemes, strict=True)
        )
        found[scheme.name] = Assignment(costs.groups, schemes, schemes[-1], baseline.kv)
    return found | {f"KV {kv.name}": replace(baseline, kv=kv) for kv in choices.kv_formats if kv.quantized}


def _advice(
    deployment: Deployment, plan: Assignment, baseline: Assignment, everywhere: Mapping[str, Assignment]
) -> tuple[Advice, ...]:
    """Return what to know about the choices, about KV formats that were not asked for too, and where the gain went."""
    schemes = {name: one for name, one in everywhere.items() if one.kv == baseline.kv}
    kv_formats = uniform_kv_formats(deployment, baseline)
    return (
        *deployment_advice(deployment, baseline, schemes, kv_formats),
        *waterfall_advice(deployment, plan, baseline, "This plan"),
    )


def _pareto(request: PlanRequest, costs: Costs, problem: PlanProblem) -> ParetoFront | None:
    if request.pareto is None:
        return None
    first, second = request.pareto
    weights = np.array([group.weight_count for group in costs.groups], dtype=float)
    points = tuple(
        ParetoPoint(s.values[first], s.values[second], scheme_mix(weights, costs.assignment(s).schemes))
        for s in pareto_front(problem, request.pareto, request.budgets)
    )
    return ParetoFront(str(first), str(second), points)
