"""One scheme everywhere, over many batches or contexts at once: where a gain ends."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.kernels import Target
from codesign.cost.step import (
    Kernels,
    Step,
    attention_kernels,
    communication_kernels,
    elementwise_kernels,
    group_kernel,
)
from codesign.model.groups import FusedGroup
from codesign.schemes.scheme import Scheme

# Every batch up to 1,024, then doubling: where a break-even lies above, its order of magnitude is enough.
BATCHES = np.concatenate([np.arange(1.0, 1025.0), 2.0 ** np.arange(11, 15)])
CONTEXT_POINTS = 48
STOPS_PAYING_GAIN = 1.05


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Where a scheme stops paying against 16 bits, in decode.

    `slower_from_batch` is the smallest batch at which it is slower (None: at no batch up to 16,384);
    `pays_until_context_tokens` is the longest context at which it is still 5 % faster at the workload's batch
    (None: at no context).
    """

    scheme: str
    decode_gain: float
    prefill_gain: float
    slower_from_batch: int | None
    pays_until_context_tokens: int | None
    context_limit_tokens: int


def step_seconds(deployment: Deployment, assignment: Assignment, step: Step) -> FloatArray:
    """Return the seconds of a step whose batch or context is an array, for any assignment of schemes."""
    model, target = deployment.model, deployment.target
    others = (
        attention_kernels(model, assignment.kv, target, step)
        + elementwise_kernels(model, target, step)
        + communication_kernels(model, target, step)
    )
    total = _sum(_weight_kernels(assignment, target, step))
    return total + _sum(others)


def _weight_kernels(assignment: Assignment, target: Target, step: Step) -> Kernels:
    pairs = zip(assignment.groups, assignment.schemes, strict=True)
    first: dict[tuple[object, ...], tuple[FusedGroup, Scheme]] = {}
    counts: Counter[tuple[object, ...]] = Counter()
    for group, scheme in pairs:
        key = (*group.signature, scheme.name)
        first.setdefault(key, (group, scheme))
        counts[key] += 1
    return [(group_kernel(*first[key], target, step), float(counts[key])) for key in first]


def _sum(kernels: Kernels) -> FloatArray:
    return as_floats(sum((kernel.predicted_s * count for kernel, count in kernels), as_floats(0.0)))


def break_even(deployment: Deployment, quantized: Assignment, baseline: Assignment, name: str) -> BreakEven:
    """Return where `quantized` stops being faster than `baseline`."""
    workload, limit = deployment.workload, deployment.model.max_context_tokens
    by_batch = Step(BATCHES, 1, workload.mean_context_tokens)
    gains = step_seconds(deployment, baseline, by_batch) / step_seconds(deployment, quantized, by_batch)
    slower = np.flatnonzero(gains < 1.0)
    contexts = np.unique(np.rint(np.geomspace(min(64, limit), limit, CONTEXT_POINTS)))
    by_context = Step(float(workload.batch), 1, contexts)
    context_gains = step_seconds(deployment, baseline, by_context) / step_seconds(deployment, quantized, by_context)
    paying = np.flatnonzero(context_gains >= STOPS_PAYING_GAIN)
    prefill = Step(float(workload.batch), workload.prompt_tokens, float(workload.prompt_tokens))
    prefill_gain = step_seconds(deployment, baseline, prefill) / step_seconds(deployment, quantized, prefill)
    return BreakEven(
        scheme=name,
        decode_gain=float(np.interp(workload.batch, BATCHES, gains)),
        prefill_gain=float(prefill_gain),
        slower_from_batch=int(BATCHES[slower[0]]) if slower.size else None,
        pays_until_context_tokens=int(contexts[paying[-1]]) if paying.size else None,
        context_limit_tokens=limit,
    )
