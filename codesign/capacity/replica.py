"""One replica of a server: what its steps take and how many requests its memory holds, for a model on machines."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from codesign.capacity.server import BLOCK_TOKENS, SEQUENCES_MAX, STEP_TOKENS, HostTimes, Server
from codesign.capacity.step_table import End, StepSizes, StepTable, make_step_table
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.memory import kv_bytes, memory_need, total_weight_bytes
from codesign.cost.serving import MEMORY_SHARE
from codesign.cost.workload import Workload

# Programs that read prompts in steps of their own, before any decoding: SGLang without --enable-mixed-chunk (its
# default). The others share steps: vLLM's version 1 engine, TensorRT-LLM with chunked context.
PREFILL_FIRST = frozenset({"sglang"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server is started with: most sequences, tokens of a step, stages of a pipeline, prefix that all share."""

    sequences_max: int = SEQUENCES_MAX
    step_tokens: int = STEP_TOKENS
    pipeline: int = 1
    shared_prefix_tokens: int = 0


# Programs that decide on a step while the one before runs, as far as the first tokens of measured runs show it.
OVERLAPPING = frozenset({"trtllm"})
# What each program adds beside the kernels: `scripts/fit_host_times.py`, on the runs of servers on H100.
HOST_TIMES: Mapping[str, HostTimes] = MappingProxyType(
    {
        "sglang": HostTimes(request_s=0.0, step_s=0.0, sequence_s=4.6e-6),
        "trtllm": HostTimes(request_s=4e-3, step_s=6.3e-4, sequence_s=1.2e-5),
        "vllm": HostTimes(request_s=1e-3, step_s=0.0, sequence_s=4.9e-5),
    }
)
NO_HOST_TIMES = HostTimes()


@dataclass(frozen=True, slots=True)
class Replica:
    """A server ready to be simulated; the stages of a pipeline work for as many `streams`, each with its own scheduler.

    `capacity_tokens` is what the cache of one stream holds.
    """

    server: Server
    table: StepTable
    capacity_tokens: int
    streams: int = 1


def make_replica(
    where: Deployment, assignment: Assignment, context_max: int, limits: Limits, end: End = "predicted_s"
) -> Replica | None:
    """Return one replica for requests of at most `context_max` tokens; None if its cache cannot hold such a one."""
    tokens = cache_tokens(where, assignment, context_max, limits)
    if tokens < context_max:
        return None
    server = Server(
        capacity_blocks=tokens // BLOCK_TOKENS,
        sequences_max=1 if where.target.hardware.constraints.batch_one_only else limits.sequences_max,
        step_tokens=limits.step_tokens,
        prefill_first=where.target.library in PREFILL_FIRST,
        overlap=where.target.library in OVERLAPPING,
        host=HOST_TIMES.get(where.target.library, NO_HOST_TIMES),
        shared_prefix_tokens=limits.shared_prefix_tokens,
    )
    sizes = StepSizes(limits.step_tokens, limits.sequences_max, context_max)
    return Replica(server, make_step_table(where, assignment, sizes, end, limits.pipeline), tokens, limits.pipeline)


def cache_tokens(where: Deployment, assignment: Assignment, context_max: int, limits: Limits) -> int:
    """Return the tokens that the cache of one stream holds, 0 if the weights leave no room for any."""
    per_token = kv_bytes(where.model, assignment.kv, 1, context_max) / context_max
    if per_token == 0:
        return context_max * limits.sequences_max
    return max(0, int(free_bytes(where, assignment, limits) // per_token)) // limits.pipeline


def free_bytes(where: Deployment, assignment: Assignment, limits: Limits) -> float:
    """Return what is left for keys and values on all devices of a replica, as a server reckons it when it starts."""
    hardware, devices = where.target.hardware, where.target.gpu_count * limits.pipeline
    weights = assignment.stored_bytes
    if weights is None:
        weights = total_weight_bytes(where.model, assignment.groups, assignment.schemes, assignment.embedding)
    step = Workload(limits.sequences_max, max(1, limits.step_tokens // limits.sequences_max), 1)
    need = memory_need(where.model, weights, assignment.kv, step, hardware, devices)
    usable = hardware.memory.capacity_bytes * devices * MEMORY_SHARE
    return usable - need.weight_bytes - need.activation_bytes - need.overhead_bytes
