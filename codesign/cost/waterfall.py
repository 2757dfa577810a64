"""Where the ideal gain of few bits goes: the gain over 16 bits as causes are added, bits alone first."""

from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.engine import host_s, issued_step_s
from codesign.cost.step import (
    Step,
    attention_kernels,
    communication_kernels,
    elementwise_kernels,
    group_times,
    total_stage,
)
from codesign.cost.traffic import expected_experts_hit

CAUSES = (
    "bits alone, quantized layers only",
    "layers that stay in 16 bits",
    "scales and zero points",
    "what the kernels reach",
    "fixed time per kernel",
    "attention and KV cache",
    "element-wise kernels",
)
LINKS, HOST = "links between GPUs", "waiting for the host"


@dataclass(frozen=True, slots=True)
class GainStep:
    """The gain over 16 bits that is left once `cause` is taken into account."""

    cause: str
    gain: float


def gain_steps(deployment: Deployment, plan: Assignment, baseline: Assignment, step: Step) -> tuple[GainStep, ...]:
    """Return the gain over the baseline as causes are added: bits alone first, the whole step last."""
    causes = [*CAUSES]
    if deployment.target.gpu_count > 1:
        causes.append(LINKS)
    if deployment.engine.python_loop:
        causes.append(HOST)
    columns = [_cumulative_s(deployment, assignment, plan, step) for assignment in (baseline, plan)]
    gains = columns[0] / columns[1]
    return tuple(GainStep(cause, float(gain)) for cause, gain in zip(causes, gains, strict=True))


def _cumulative_s(deployment: Deployment, assignment: Assignment, plan: Assignment, step: Step) -> FloatArray:
    """Return seconds after each cause; `plan` says which groups count as quantized."""
    target, model = deployment.target, deployment.model
    bandwidth = target.hardware.memory.sustained_bytes_per_s * target.gpu_count
    reached = _weights_read(assignment, step)
    quantized = np.array([scheme.quantized for scheme in plan.schemes])
    weights = np.array([group.weight_count for group in assignment.groups]) * reached
    nominal_s = weights * np.array([scheme.weights.bits for scheme in assignment.schemes]) / 8 / bandwidth
    stored_s = weights * np.array([scheme.bits_per_weight for scheme in assignment.schemes]) / 8 / bandwidth
    busy_s, fixed_s = _busy_and_fixed(assignment, deployment, step)
    rest = [
        attention_kernels(model, assignment.kv, target, step),
        elementwise_kernels(model, target, step, deployment.engine),
    ]
    if target.gpu_count > 1:
        rest.append(communication_kernels(model, target, step))
    some = quantized if quantized.any() else ~quantized
    device_s = busy_s + fixed_s + np.cumsum([total_stage(kernels).seconds.value for kernels in rest])
    steps_s = [nominal_s[some].sum(), nominal_s.sum(), stored_s.sum(), busy_s, busy_s + fixed_s, *device_s]
    if deployment.engine.python_loop:
        issued_s = host_s(deployment.engine, target.hardware, assignment.groups, assignment.schemes).value
        steps_s.append(float(issued_step_s(target.hardware, device_s[-1], issued_s)))
    return np.array(steps_s)


def _weights_read(assignment: Assignment, step: Step) -> FloatArray:
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
