"""From a deployment and its choices to a problem, a solution and a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.deployment import Assignment, Deployment, group_problem
from codesign.cost.energy import kernel_energy_joule, stage_energy_joule
from codesign.cost.engine import issued_step_s, kernels_after, linear_host_s, other_host_s
from codesign.cost.memory import embedding_bytes as input_embedding_bytes
from codesign.cost.memory import fixed_weight_bytes, group_bytes, kv_bytes, memory_need
from codesign.cost.prediction import StageTime
from codesign.cost.step import (
    GroupTimes,
    attention_kernels,
    communication_kernels,
    decode_step,
    elementwise_kernels,
    group_times,
    prefill_step,
    total_stage,
)
from codesign.hardware.hardware import Hardware
from codesign.model.groups import FusedGroup, fused_groups
from codesign.plan.problem import Criterion, PlanProblem, Solution, Terms
from codesign.quality.table import QualityTable
from codesign.schemes.kv import KvFormat
from codesign.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Choices:
    """What the planner may choose from; the first scheme is the 16-bit baseline, the first KV format its own."""

    schemes: tuple[Scheme, ...]
    kv_formats: tuple[KvFormat, ...]
    quality: QualityTable
    allow_unknown_quality: bool = False


@dataclass(frozen=True, slots=True)
class Costs:
    """Everything that a plan can need to know, per group and scheme [G, S] and per KV format [K]."""

    groups: tuple[FusedGroup, ...]
    choices: Choices
    decode: tuple[GroupTimes, ...]
    prefill: tuple[GroupTimes, ...]
    kv_decode: tuple[StageTime, ...]
    kv_prefill: tuple[StageTime, ...]
    other_decode: StageTime
    other_prefill: StageTime
    memory_bytes: FloatArray
    loss_nats: FloatArray
    kv_loss_nats: FloatArray
    refused: npt.NDArray[np.object_]

    def assignment(self, solution: Solution) -> Assignment:
        """Return the schemes of a solution; the input embedding follows the head."""
        schemes = tuple(self.choices.schemes[s] for s in solution.choice)
        return Assignment(self.groups, schemes, schemes[-1], self.choices.kv_formats[solution.kv_choice])


def gather_costs(deployment: Deployment, choices: Choices) -> Costs:
    """Predict every group under every scheme, and attention under every KV format."""
    model, target = deployment.model, deployment.target
    groups = fused_groups(model)
    decode, prefill = decode_step(deployment.workload), prefill_step(deployment.workload)
    others = [
        total_stage(
            elementwise_kernels(model, target, step, deployment.engine) + communication_kernels(model, target, step)
        )
        for step in (decode, prefill)
    ]
    return Costs(
        groups=groups,
        choices=choices,
        decode=tuple(group_times(groups, scheme, target, decode) for scheme in choices.schemes),
        prefill=tuple(group_times(groups, scheme, target, prefill) for scheme in choices.schemes),
        kv_decode=tuple(total_stage(attention_kernels(model, kv, target, decode)) for kv in choices.kv_formats),
        kv_prefill=tuple(total_stage(attention_kernels(model, kv, target, prefill)) for kv in choices.kv_formats),
        other_decode=others[0],
        other_prefill=others[1],
        memory_bytes=_memory_bytes(deployment, groups, choices.schemes),
        loss_nats=choices.quality.group_losses([group.key for group in groups], [s.name for s in choices.schemes]),
        kv_loss_nats=choices.quality.kv_losses([kv.name for kv in choices.kv_formats]),
        refused=_refusals(deployment, groups, choices.schemes),
    )


def _memory_bytes(deployment: Deployment, groups: Sequence[FusedGroup], schemes: Sequence[Scheme]) -> FloatArray:
    """Return stored bytes [G, S]; the input embedding is counted with the head, whose scheme it takes."""
    known: dict[tuple[object, ...], list[float]] = {}
    rows = []
    for group in groups:
        key = (*group.signature, *(layer.bias for layer in group.layers))
        if key not in known:
            extra = group.name == "head"
            known[key] = [
                group_bytes(group, scheme) + (input_embedding_bytes(deployment.model, scheme) if extra else 0)
                for scheme in schemes
            ]
        rows.append(known[key])
    return np.array(rows, dtype=np.float64)


def _refusals(
    deployment: Deployment, groups: Sequence[FusedGroup], schemes: Sequence[Scheme]
) -> npt.NDArray[np.object_]:
    """Return, for every group and scheme, why it may not be chosen, or an empty text."""
    known: dict[tuple[object, ...], list[str]] = {}
    rows = []
    for group in groups:
        if group.signature not in known:
            known[group.signature] = [group_problem(group, scheme, deployment) or "" for scheme in schemes]
        rows.append(known[group.signature])
    return np.array(rows, dtype=object)


def build_problem(deployment: Deployment, costs: Costs) -> PlanProblem:
    """Return the numbers that the solver sees; unknown losses are not allowed unless the user asked for it."""
    known = np.isfinite(costs.loss_nats)
    if costs.choices.allow_unknown_quality:
        known = np.ones_like(known)
    allowed = (costs.refused == "") & known
    return PlanProblem(
        allowed=allowed,
        kv_allowed=np.isfinite(costs.kv_loss_nats) | costs.choices.allow_unknown_quality,
        terms=_terms(deployment, costs),
    )


def _terms(deployment: Deployment, costs: Costs) -> Mapping[Criterion, Terms]:
    issued = _issued_s(deployment, costs)
    decode = _time_terms(costs.decode, costs.kv_decode, costs.other_decode, issued)
    prefill = _time_terms(costs.prefill, costs.kv_prefill, costs.other_prefill, issued)
    request = _scaled_sum(prefill, decode, deployment.workload.output_tokens - 1)
    return {
        Criterion.TPOT: decode,
        Criterion.TTFT: prefill,
        Criterion.THROUGHPUT: request,
        Criterion.COST: request,
        Criterion.MEMORY: _memory_terms(deployment, costs),
        Criterion.QUALITY: Terms(np.nan_to_num(costs.loss_nats, nan=0.0), np.nan_to_num(costs.kv_loss_nats, nan=0.0)),
        Criterion.ENERGY: _energy_terms(deployment, costs),
    }


@dataclass(frozen=True, slots=True)
class _Issue:
    """The host's seconds to issue every group under every scheme [G, S], and all other kernels of a step."""

    hardware: Hardware
    groups_s: FloatArray
    other_s: float


def _issued_s(deployment: Deployment, costs: Costs) -> _Issue:
    engine, hardware = deployment.engine, deployment.target.hardware
    by_group = [
        [linear_host_s(engine, hardware, group, scheme, after) for scheme in costs.choices.schemes]
        for group, after in zip(costs.groups, kernels_after(engine, costs.groups), strict=True)
    ]
    return _Issue(hardware, np.array(by_group), other_host_s(engine, hardware, costs.groups))


def _time_terms(times: Sequence[GroupTimes], kv: Sequence[StageTime], other: StageTime, issue: "_Issue") -> Terms:
    """Return the time with the host's, group by group: where it runs ahead, never less than the longer of the sums."""
    by_group = issued_step_s(issue.hardware, np.stack([one.predicted_s for one in times], axis=1), issue.groups_s)
    rest = issued_step_s(issue.hardware, as_floats(other.seconds.value), issue.other_s)
    return Terms(by_group, np.array([one.seconds.value for one in kv]), float(rest))


def _scaled_sum(first: Terms, second: Terms, factor: float) -> Terms:
    return Terms(
        first.by_group + factor * second.by_group,
        first.by_kv + factor * second.by_kv,
        first.constant + factor * second.constant,
    )


def _memory_terms(deployment: Deployment, costs: Costs) -> Terms:
    model, workload, target = deployment.model, deployment.workload, deployment.target
    kv_formats = costs.choices.kv_formats
    rest = memory_need(model, fixed_weight_bytes(model), kv_formats[0], workload, target.hardware, target.gpu_count)
    by_kv = [kv_bytes(model, kv, workload.batch, workload.final_context_tokens) for kv in kv_formats]
    return Terms(costs.memory_bytes, np.array(by_kv), rest.total_bytes - rest.kv_bytes)


def _energy_terms(deployment: Deployment, costs: Costs) -> Terms:
    """Return joules per generated token."""
    hardware, gpus = deployment.target.hardware, deployment.target.gpu_count
    share = gpus / deployment.workload.batch
    by_group = np.stack([kernel_energy_joule(hardware, one.predicted_s, one.load) for one in costs.decode], axis=1)
    by_kv = np.array([stage_energy_joule(hardware, one, 1).value for one in costs.kv_decode])
    other = stage_energy_joule(hardware, costs.other_decode, 1).value
    return Terms(by_group * share, by_kv * share, other * share)
