"""What one deployment of one model does: first token, each further token, tokens per second, memory, energy, money."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.energy import stage_energy_joule
from codesign.cost.engine import host_s, host_wait
from codesign.cost.memory import MemoryNeed, largest_batch, largest_context, memory_need, total_weight_bytes
from codesign.cost.money import usd_per_million_tokens
from codesign.cost.prediction import Prediction, StageTime, add_predictions, add_stages
from codesign.cost.step import (
    Step,
    attention_kernels,
    communication_kernels,
    decode_step,
    elementwise_kernels,
    group_times,
    prefill_step,
    total_stage,
)
from codesign.cost.target import Target
from codesign.model.groups import FusedGroup
from codesign.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class InferencePrediction:
    """The answer for one deployment; `parts` split prefill and decode by weights, attention, element-wise, links.

    Under an engine whose host holds the device up, its waiting is a part too: `host`.
    """

    ttft_s: Prediction
    tpot_s: Prediction
    tokens_per_s: Prediction
    energy_per_token_joule: Prediction
    usd_per_million_tokens: Prediction | None
    memory: MemoryNeed
    capacity_bytes: float
    largest_batch: int
    largest_context_tokens: int
    prefill_parts: Mapping[str, StageTime]
    decode_parts: Mapping[str, StageTime]

    @property
    def fits(self) -> bool:
        """Return whether the memory of all devices holds everything."""
        return self.memory.total_bytes <= self.capacity_bytes


def step_parts(deployment: Deployment, assignment: Assignment, step: Step) -> dict[str, StageTime]:
    """Return the time of one pass by cause."""
    model, target = deployment.model, deployment.target
    parts = {
        "weights": _weights_time(assignment, target, step),
        "attention": total_stage(attention_kernels(model, assignment.kv, target, step)),
        "elementwise": total_stage(elementwise_kernels(model, target, step, deployment.engine)),
        "communication": total_stage(communication_kernels(model, target, step)),
    }
    issuing = deployment.engine
    if issuing.python_loop:
        issued_s = host_s(issuing, target.hardware, assignment.groups, assignment.schemes)
        parts["host"] = host_wait(target.hardware, add_stages(parts.values()).seconds, issued_s)
    return parts


def _weights_time(assignment: Assignment, target: Target, step: Step) -> StageTime:
    by_scheme: dict[Scheme, list[FusedGroup]] = {}
    for group, scheme in zip(assignment.groups, assignment.schemes, strict=True):
        by_scheme.setdefault(scheme, []).append(group)
    return add_stages(group_times(groups, scheme, target, step).stage() for scheme, groups in by_scheme.items())


def request_s(ttft_s: Prediction, tpot_s: Prediction, output_tokens: int) -> Prediction:
    """Return the time of a whole request: first token, then output_tokens - 1 further ones."""
    return add_predictions((ttft_s, tpot_s.scaled(output_tokens - 1)))


def predict_inference(deployment: Deployment, assignment: Assignment) -> InferencePrediction:
    """Predict a deployment whose batch arrives together at an idle machine and runs to its end."""
    workload, target, model = deployment.workload, deployment.target, deployment.model
    prefill = step_parts(deployment, assignment, prefill_step(workload))
    decode = step_parts(deployment, assignment, decode_step(workload))
    ttft_s, tpot_s = (add_stages(parts.values()).seconds for parts in (prefill, decode))
    tokens_per_s = request_s(ttft_s, tpot_s, workload.output_tokens).inverse(workload.batch * workload.output_tokens)
    weights = assignment.stored_bytes
    if weights is None:
        weights = total_weight_bytes(model, assignment.groups, assignment.schemes, assignment.embedding)
    once = memory_need(model, weights, assignment.kv, workload, target.hardware, target.gpu_count)
    copies = deployment.engine.cache_copies
    memory = replace(once, kv_bytes=once.kv_bytes * copies)
    free = (deployment.capacity_bytes - memory.total_bytes + memory.kv_bytes) / copies
    energy = stage_energy_joule(target.hardware, add_stages(decode.values()), target.gpu_count)
    price = deployment.price_usd_per_hour
    return InferencePrediction(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        tokens_per_s=tokens_per_s,
        energy_per_token_joule=energy.scaled(1 / workload.batch),
        usd_per_million_tokens=None if price is None else usd_per_million_tokens(price, target.gpu_count, tokens_per_s),
        memory=memory,
        capacity_bytes=deployment.capacity_bytes,
        largest_batch=largest_batch(model, assignment.kv, free, workload.final_context_tokens),
        largest_context_tokens=largest_context(model, assignment.kv, free, workload.batch),
        prefill_parts=prefill,
        decode_parts=decode,
    )
