"""All workloads of one setup predicted together: the same numbers as `predict_inference`, in arrays."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from codesign.capacity.grid_file import Setup
from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.deployment import Assignment, Deployment, deploy, uniform_assignment
from codesign.cost.energy import kernel_energy_joule
from codesign.cost.memory import kv_bytes, memory_need, total_weight_bytes
from codesign.cost.money import TOKENS_PER_MILLION
from codesign.cost.power import Load
from codesign.cost.prediction import MATERIAL_FRACTION, TRUST
from codesign.cost.step import (
    Kernels,
    Step,
    attention_kernels,
    communication_kernels,
    elementwise_kernels,
    group_kernel,
)
from codesign.cost.workload import Workload
from codesign.errors import CodesignError
from codesign.hardware.file import load_hardware
from codesign.model.file import load_model
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting
from codesign.units import SECONDS_PER_HOUR

ENDS = ("value", "low", "high")
FIGURES = ("ttft_s", "tpot_s", "tokens_per_s")
RESULTS = ("joule_per_token", "usd_per_million_tokens", "memory_bytes", "fits")
NUMBERS = (*(name + end for name in FIGURES for end in ("", "_low", "_high")), *RESULTS)

Columns = dict[str, FloatArray | list[str]]
load_hardware_once, load_model_once = cache(load_hardware), cache(load_model)


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of steps, an array each, with what draws power and the least trusted origin of a material part."""

    value: FloatArray
    low: FloatArray
    high: FloatArray
    compute_load_s: FloatArray
    memory_load_s: FloatArray
    origin: list[str]


def predict_setup(setup: Setup, workloads: Sequence[tuple[int, int, int]]) -> Columns:
    """Return a column per result, a row per (batch, prompt, output); rows of what cannot run hold the reason."""
    batch, prompt, output = (np.array(column, dtype=np.float64) for column in zip(*workloads, strict=True))
    sizes: Columns = {"batch": batch, "prompt": prompt, "output": output}
    try:
        hardware, model = load_hardware_once(setup.hardware), load_model_once(setup.model)
        where = deploy(hardware, model, Setting(library=setup.library, gpu_count=setup.gpus))
        assignment = uniform_assignment(where, parse_scheme(setup.scheme), setup.kv)
    except CodesignError as error:
        nothing = np.full(len(batch), np.nan)
        empty: Columns = dict.fromkeys(NUMBERS, nothing)
        return {**sizes, **empty, "origin": [""] * len(batch), "reason": [str(error)] * len(batch)}
    found = _predicted(where, assignment, batch, prompt, output)
    return {**sizes, **{name: found[name] for name in (*NUMBERS, "origin", "reason")}}


def _predicted(
    where: Deployment, assignment: Assignment, batch: FloatArray, prompt: FloatArray, output: FloatArray
) -> Columns:
    decode = _stages(where, assignment, batch, np.ones_like(batch), prompt + (output + 1) / 2)
    prefill = _stages(where, assignment, batch, prompt, prompt)
    tokens = batch * output
    columns: Columns = {}
    for end, other in zip(ENDS, ("value", "high", "low"), strict=True):
        suffix = "" if end == "value" else f"_{end}"
        columns[f"ttft_s{suffix}"], columns[f"tpot_s{suffix}"] = getattr(prefill, end), getattr(decode, end)
        columns[f"tokens_per_s{suffix}"] = tokens / (getattr(prefill, other) + getattr(decode, other) * (output - 1))
    hardware, count = where.target.hardware, where.target.gpu_count
    joule = kernel_energy_joule(hardware, decode.value, Load(decode.compute_load_s, decode.memory_load_s)) * count
    memory_bytes = _memory_bytes(where, assignment, batch, prompt, output)
    price = where.price_usd_per_hour
    tokens_per_s = as_floats(columns["tokens_per_s"])
    usd = np.nan if price is None else price * count / SECONDS_PER_HOUR * TOKENS_PER_MILLION / tokens_per_s
    return {
        **columns,
        "joule_per_token": joule / batch,
        "usd_per_million_tokens": np.broadcast_to(usd, batch.shape),
        "memory_bytes": memory_bytes,
        "fits": (memory_bytes <= where.capacity_bytes).astype(np.float64),
        "origin": decode.origin,
        "reason": [""] * len(batch),
    }


def _stages(
    where: Deployment, assignment: Assignment, batch: FloatArray, query: FloatArray, context: FloatArray
) -> Stages:
    """Return the steps with `query` new tokens a sequence; prompts of one length are predicted together."""
    result = {name: np.zeros_like(batch) for name in ("value", "low", "high", "compute_load_s", "memory_load_s")}
    origin = [""] * len(batch)
    for length in np.unique(query):
        rows = np.flatnonzero(query == length)
        step = Step(batch[rows], int(length), context[rows])
        parts = [_part(kernels, batch[rows]) for kernels in _parts(where, assignment, step)]
        for name, column in result.items():
            column[rows] = sum(getattr(part, name) for part in parts)
        for at, row in enumerate(rows):
            origin[row] = _origin(parts, at)
    return Stages(**result, origin=origin)


def _origin(parts: Sequence[Stages], at: int) -> str:
    """Return the least trusted origin of the parts that make a tenth of the sum, as `add_predictions` does."""
    whole = sum(float(part.value[at]) for part in parts)
    material = [part.origin[0] for part in parts if part.origin and part.value[at] >= MATERIAL_FRACTION * whole]
    return max(material, key=[str(one) for one in TRUST].index, default="")


def _parts(where: Deployment, assignment: Assignment, step: Step) -> list[Kernels]:
    """Return the kernels of a step by cause: weights scheme by scheme, attention, element-wise, links."""
    counts = Counter(
        (group.signature, scheme) for group, scheme in zip(assignment.groups, assignment.schemes, strict=True)
    )
    groups = {group.signature: group for group in assignment.groups}
    weights = [(group_kernel(groups[key], scheme, where.target, step), float(n)) for (key, scheme), n in counts.items()]
    model, target = where.model, where.target
    return [
        weights,
        attention_kernels(model, assignment.kv, target, step),
        elementwise_kernels(model, target, step, where.engine),
        communication_kernels(model, target, step),
    ]


def _part(kernels: Kernels, like: FloatArray) -> Stages:
    def total(of: Callable[..., FloatArray]) -> FloatArray:
        summed = np.zeros_like(like)
        for one, count in kernels:
            summed = summed + count * of(one)
        return summed

    origins = [str(max((one.origin for one, _ in kernels), key=TRUST.index))] if kernels else []
    return Stages(
        value=total(lambda one: one.predicted_s),
        low=total(lambda one: one.low_s),
        high=total(lambda one: one.high_s),
        compute_load_s=total(lambda one: one.power_load.compute_s),
        memory_load_s=total(lambda one: one.power_load.memory_s),
        origin=origins,
    )


def _memory_bytes(
    where: Deployment, assignment: Assignment, batch: FloatArray, prompt: FloatArray, output: FloatArray
) -> FloatArray:
    """Return what each workload needs; sums over the model are made once per distinct size."""
    model, target = where.model, where.target
    weights = total_weight_bytes(model, assignment.groups, assignment.schemes, assignment.embedding)

    @cache
    def cached(context: int) -> float:
        return kv_bytes(model, assignment.kv, 1, context)

    @cache
    def rest(sequences: int, tokens: int) -> float:
        need = memory_need(
            model, weights, assignment.kv, Workload(sequences, tokens, 1), target.hardware, target.gpu_count
        )
        return need.total_bytes - need.kv_bytes

    sizes = zip(batch.astype(int), prompt.astype(int), output.astype(int), strict=True)
    return np.array([rest(int(b), int(p)) + b * cached(int(p + o)) for b, p, o in sizes], dtype=np.float64)
