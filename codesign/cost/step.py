"""One forward step of a model: which kernels run, at which sizes, and how long they take."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from codesign.cost.arrays import Amount, FloatArray, as_floats
from codesign.cost.attention import block_attention
from codesign.cost.collectives import collective
from codesign.cost.engine import EngineClass, elements_per_s
from codesign.cost.expert_routing import RANDOM_ROUTING
from codesign.cost.kernels import KernelPrediction, datasheet_prediction, datasheet_rates, gemm, moe
from codesign.cost.moe_time import MoeShape
from codesign.cost.origin import Origin
from codesign.cost.power import Load
from codesign.cost.prediction import NO_TIME, TRUST, Prediction, StageTime, add_stages, stage
from codesign.cost.roofline import OpCost
from codesign.cost.target import Target
from codesign.cost.traffic import ACTIVATION_BYTES
from codesign.cost.workload import Workload
from codesign.model.groups import FusedGroup
from codesign.model.layers import Attention, Block, LatentAttention, Model
from codesign.schemes.kv import KvFormat
from codesign.schemes.scheme import Scheme

# Kernels beside the multiplications in a fused implementation: two norms with residual, rotary embedding with the
# write to the cache, and the activation function; routing adds top-k, permutation and the weighted sum.
LAUNCHES_PER_BLOCK = 4.0
LAUNCHES_PER_ROUTER = 3.0
HIDDEN_PASSES_PER_BLOCK = 6.0  # each norm reads the residual and the update and writes one result
QUESTIONS_KEPT = 2048  # kernels whose prediction is remembered
REDUCTIONS_PER_BLOCK = 2.0  # after the attention output and after the MLP (Megatron-LM, arXiv 1909.08053)


@dataclass(frozen=True, slots=True)
class Step:
    """One pass: `query_tokens` new tokens in each of `batch` sequences; the last sees `kv_tokens`, itself included."""

    batch: Amount
    query_tokens: int
    kv_tokens: Amount

    @property
    def tokens(self) -> Amount:
        """Return the rows that the multiplications see."""
        return self.batch * self.query_tokens


def prefill_step(workload: Workload) -> Step:
    """Return the pass that reads all prompts of the batch at once."""
    return Step(workload.batch, workload.prompt_tokens, workload.prompt_tokens)


def decode_step(workload: Workload) -> Step:
    """Return the decode pass at the mean context."""
    return Step(workload.batch, 1, workload.mean_context_tokens)


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """Seconds of each fused group, aligned with the groups asked for."""

    predicted_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    compute_s: FloatArray
    memory_s: FloatArray
    fixed_s: FloatArray
    load: Load
    bound: tuple[str, ...]
    origin: Origin

    def of_group(self, index: int) -> Prediction:
        """Return the time of one group."""
        return Prediction(
            float(self.predicted_s[index]), float(self.low_s[index]), float(self.high_s[index]), self.origin
        )

    def stage(self) -> StageTime:
        """Return all groups one after another."""
        seconds = Prediction(
            float(self.predicted_s.sum()), float(self.low_s.sum()), float(self.high_s.sum()), self.origin
        )
        busy = (self.compute_s, self.memory_s, self.fixed_s, self.load.compute_s, self.load.memory_s)
        return StageTime(seconds, *(float(column.sum()) for column in busy))


def group_times(groups: Sequence[FusedGroup], scheme: Scheme, target: Target, step: Step) -> GroupTimes:
    """Return the time of every group under one scheme; CapabilityError if the target cannot run the scheme.

    Equal groups are predicted once. The head multiplies only the last token of each sequence.
    """
    first: dict[tuple[object, ...], int] = {}
    unique: list[FusedGroup] = []
    index = []
    for group in groups:
        position = first.setdefault(group.signature, len(first))
        if position == len(unique):
            unique.append(group)
        index.append(position)
    kernels = [group_kernel(group, scheme, target, step) for group in unique]
    origin = max((kernel.origin for kernel in kernels), key=TRUST.index)
    bounds = [str(kernel.time.bound) for kernel in kernels]

    def column(values: Iterable[FloatArray]) -> FloatArray:
        return np.array([float(value) for value in values])[index]

    return GroupTimes(
        predicted_s=column(kernel.predicted_s for kernel in kernels),
        low_s=column(kernel.low_s for kernel in kernels),
        high_s=column(kernel.high_s for kernel in kernels),
        compute_s=column(kernel.time.compute_s for kernel in kernels),
        memory_s=column(kernel.time.memory_s for kernel in kernels),
        fixed_s=column(kernel.time.fixed_s for kernel in kernels),
        load=Load(
            column(kernel.power_load.compute_s for kernel in kernels),
            column(kernel.power_load.memory_s for kernel in kernels),
        ),
        bound=tuple(bounds[position] for position in index),
        origin=origin,
    )


def group_kernel(group: FusedGroup, scheme: Scheme, target: Target, step: Step) -> KernelPrediction:
    """Return the kernel of one fused group; the step's batch may be an array.

    Equal questions are answered once: a plan asks for the same kernels at many contexts and of many schemes.
    """
    rows = as_floats(step.batch if group.name == "head" else step.tokens)
    if not scheme.quantized and not target.kernel:
        target = target.program
    key = (group.signature, id(scheme), *_identity(target), rows.shape, rows.tobytes())
    return _answer(_Question(key, functools.partial(_group_kernel, group, scheme, target, rows)))


def _identity(target: Target) -> tuple[object, ...]:
    place = (id(target.hardware), target.gpu_count, target.expert_parallel)
    return (*place, target.library, target.kernel, *map(id, target.sheets))


@dataclass(frozen=True, slots=True)
class _Question:
    """A kernel to predict, told apart by its key alone; what `predict` holds keeps the identities in the key unique."""

    key: tuple[object, ...]
    predict: Callable[[], KernelPrediction] = field(compare=False)


@functools.lru_cache(maxsize=QUESTIONS_KEPT)
def _answer(asked: _Question) -> KernelPrediction:
    return asked.predict()


def _group_kernel(group: FusedGroup, scheme: Scheme, target: Target, rows: FloatArray) -> KernelPrediction:
    if group.experts is None:
        n, k = group.shard(target.gpu_count)
        return gemm(target, scheme, rows, as_floats(n), as_floats(k), in_step=True)
    experts = group.experts
    shape = MoeShape(
        tokens=rows,
        hidden=as_floats(experts.hidden),
        intermediate=as_floats(-(-experts.intermediate // target.expert_shards)),
        expert_count=as_floats(experts.expert_count),
        top_k=as_floats(experts.top_k),
        skew=as_floats(RANDOM_ROUTING),
        matrix_count=as_floats(len(experts.matrices)),
        expert_parallel=as_floats(target.expert_parallel),
    )
    return moe(target, scheme, shape)


Kernels = list[tuple[KernelPrediction, float]]  # a kernel and how often it runs in the step


def attention_kernels(model: Model, kv: KvFormat, target: Target, step: Step) -> Kernels:
    """Return the attention of all blocks, equal blocks merged; equal questions are answered once."""
    counts: Counter[Attention | LatentAttention] = Counter()
    for block, count in model.distinct_blocks:
        counts[block.attention] += count
    target = target.program
    batch, tokens = as_floats(step.batch), as_floats(step.kv_tokens)
    sizes = (batch.shape, batch.tobytes(), step.query_tokens, tokens.shape, tokens.tobytes())
    kernels: Kernels = []
    for shape, count in counts.items():
        key = (shape, id(kv), *_identity(target), *sizes)
        predict = functools.partial(block_attention, target, kv, shape, step.batch, step.query_tokens, step.kv_tokens)
        kernels.append((_answer(_Question(key, predict)), float(count)))
    return kernels


def elementwise_kernels(model: Model, target: Target, step: Step, engine: EngineClass) -> Kernels:
    """Return norms, residuals, rotary embeddings, activation functions and routing of all blocks."""
    counts: Counter[tuple[float, float]] = Counter()
    for block, count in model.distinct_blocks:
        counts[_elementwise_width(block), _launches(block)] += count
    math_dtype = "fp32" if "fp32" in target.hardware.peak_flop_per_s else next(iter(target.hardware.peak_flop_per_s))
    rates = replace(
        datasheet_rates(target.hardware, math_dtype), vector_flop_per_s=elements_per_s(engine, target.hardware)
    )
    kernels: Kernels = []
    for (width, launches), count in counts.items():
        elements = as_floats(step.tokens * (HIDDEN_PASSES_PER_BLOCK * model.hidden + width / target.gpu_count))
        nothing = np.zeros_like(elements)
        launched = np.full_like(elements, launches)
        cost = OpCost(nothing, elements, nothing, elements * ACTIVATION_BYTES, nothing, launched)
        kernels.append((datasheet_prediction("elementwise", cost, rates), float(count)))
    return kernels


def communication_kernels(model: Model, target: Target, step: Step) -> Kernels:
    """Return the all-reduces of tensor parallelism; none on one device."""
    if target.gpu_count == 1:
        return []
    message = as_floats(step.tokens * model.hidden * ACTIVATION_BYTES)
    one = collective(target, "all_reduce", as_floats(target.gpu_count), message)
    return [(one, REDUCTIONS_PER_BLOCK * len(model.blocks))]


def total_stage(kernels: Kernels) -> StageTime:
    """Return all kernels of a list one after another."""
    return add_stages(stage(kernel, count) for kernel, count in kernels) if kernels else NO_TIME


def elements_per_token(model: Model) -> float:
    """Return the elements that the element-wise kernels of all blocks move for one token."""
    return sum(HIDDEN_PASSES_PER_BLOCK * model.hidden + _elementwise_width(block) for block in model.blocks)


def _elementwise_width(block: Block) -> float:
    """Return the elements per token that element-wise kernels move beside the hidden state."""
    attention = block.attention
    rotated = (
        2.0 * (attention.heads + attention.kv_heads) * attention.head_dim if isinstance(attention, Attention) else 0.0
    )
    intermediate = sum(layer.n for layer in block.layers if layer.role in ("gate", "up", "shared_gate", "shared_up"))
    if block.experts is not None:
        intermediate += block.experts.top_k * block.experts.intermediate * (2 if block.experts.gated else 1)
    return rotated + 1.5 * intermediate  # two inputs and one output of half the width together


def _launches(block: Block) -> float:
    return LAUNCHES_PER_BLOCK + (LAUNCHES_PER_ROUTER if block.experts is not None else 0.0)
