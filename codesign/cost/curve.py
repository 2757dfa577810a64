"""One scheme everywhere, over many batches or contexts at once: where a gain ends."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.step import (
    Kernels,
    Step,
    attention_kernels,
    communication_kernels,
    elementwise_kernels,
    group_kernel,
)
from codesign.cost.target import Target
from codesign.model.groups import FusedGroup
from codesign.schemes.scheme import Scheme

# Candidates for the batch from which a scheme is slower; the range between two of them is searched once more.
BATCH_LIMIT = 16384
BATCHES = np.unique(np.rint(np.geomspace(1, BATCH_LIMIT, 64)))
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
    contexts = np.unique(np.rint(np.geomspace(min(64, limit), limit, CONTEXT_POINTS)))
    by_context = Step(float(workload.batch), 1, contexts)
    context_gains = step_seconds(deployment, baseline, by_context) / step_seconds(deployment, quantized, by_context)
    paying = np.flatnonzero(context_gains >= STOPS_PAYING_GAIN)
    prefill = Step(float(workload.batch), workload.prompt_tokens, float(workload.prompt_tokens))
    prefill_gain = step_seconds(deployment, baseline, prefill) / step_seconds(deployment, quantized, prefill)
    return BreakEven(
        scheme=name,
        decode_gain=float(_decode_gains(deployment, quantized, baseline, as_floats([workload.batch]))[0]),
        prefill_gain=float(prefill_gain),
        slower_from_batch=_slower_from(deployment, quantized, baseline),
        pays_until_context_tokens=int(contexts[paying[-1]]) if paying.size else None,
        context_limit_tokens=limit,
    )


def _slower_from(deployment: Deployment, quantized: Assignment, baseline: Assignment) -> int | None:
    """Return the smallest batch at which the scheme is slower: the first candidate, then all batches just below it."""
    slower = np.flatnonzero(_decode_gains(deployment, quantized, baseline, BATCHES) < 1.0)
    if not slower.size:
        return None
    first = int(BATCHES[slower[0]])
    before = int(BATCHES[slower[0] - 1]) if slower[0] > 0 else 0
    between = np.unique(np.rint(np.linspace(before + 1, first, 128)))
    found = np.flatnonzero(_decode_gains(deployment, quantized, baseline, between) < 1.0)
    return int(between[found[0]])


def _decode_gains(
    deployment: Deployment, quantized: Assignment, baseline: Assignment, batches: FloatArray
) -> FloatArray:
    step = Step(batches, 1, deployment.workload.mean_context_tokens)
    return step_seconds(deployment, baseline, step) / step_seconds(deployment, quantized, step)
