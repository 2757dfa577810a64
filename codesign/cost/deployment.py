"""A model on machines with a workload, and which scheme each of its layers has."""

from dataclasses import dataclass

from codesign.cost.engine import DEFAULT_ENGINE, ENGINE_CLASSES, EngineClass, engine_class
from codesign.cost.kernels import scheme_math
from codesign.cost.sheet_file import read_sheets
from codesign.cost.target import Target
from codesign.cost.workload import Workload
from codesign.errors import CapabilityError
from codesign.hardware.hardware import Hardware
from codesign.hardware.threads import with_threads
from codesign.model.groups import SIXTEEN_BIT_GROUPS, FusedGroup, fused_groups
from codesign.model.layers import Attention, Layer, Model
from codesign.schemes.capability import (
    baseline_scheme,
    candidate_kv_formats,
    library_of,
    role_problem,
    shape_problem,
)
from codesign.schemes.kv import KvFormat, parse_kv
from codesign.schemes.scheme import Scheme
from codesign.setting import Setting


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is fixed before any bit is chosen: model, machines, workload, price, what issues the kernels."""

    model: Model
    target: Target
    workload: Workload
    price_usd_per_hour: float | None = None
    engine: EngineClass = ENGINE_CLASSES[DEFAULT_ENGINE]
    thread_count: int | None = None

    @property
    def capacity_bytes(self) -> float:
        """Return the memory of all devices."""
        return self.target.hardware.memory.capacity_bytes * self.target.gpu_count


@dataclass(frozen=True, slots=True)
class Assignment:
    """One scheme per fused group (in the order of `fused_groups`), one for the input embedding, one KV format.

    `stored_bytes` are all weights of a checkpoint as its headers give them; None where the schemes' formulas tell.
    """

    groups: tuple[FusedGroup, ...]
    schemes: tuple[Scheme, ...]
    embedding: Scheme
    kv: KvFormat
    stored_bytes: int | None = None


def deploy(hardware: Hardware, model: Model, setting: Setting) -> Deployment:
    """Return model, machines and workload together, the setting's kernel sheets read.

    CapabilityError if the machine cannot run such a batch.
    """
    if hardware.constraints.batch_one_only and setting.batch > 1:
        raise CapabilityError(f"{hardware.title} runs one sequence at a time; use --batch 1.")
    if setting.gpu_count % setting.expert_parallel:
        raise CapabilityError(
            f"{setting.expert_parallel} groups of experts do not divide {setting.gpu_count} devices; "
            "--expert-parallel must divide --gpus."
        )
    hardware = _with_its_threads(hardware, setting.thread_count)
    price, sheets = setting.price_usd_per_hour, read_sheets(setting.sheet_files)
    library = library_of(setting.library, hardware).name
    return Deployment(
        model=model,
        target=Target(hardware, library, setting.gpu_count, sheets, setting.expert_parallel),
        workload=Workload(setting.batch, setting.prompt_tokens, setting.output_tokens),
        price_usd_per_hour=hardware.price_usd_per_hour if price is None else price,
        engine=engine_class(setting.engine or DEFAULT_ENGINE),
        thread_count=setting.thread_count,
    )


def _with_its_threads(hardware: Hardware, thread_count: int | None) -> Hardware:
    if thread_count is None:
        return hardware
    if hardware.kind != "cpu":
        raise CapabilityError(f"{hardware.title} is no CPU; --threads says how many threads of a CPU work.")
    return with_threads(hardware, thread_count)


def workload_warnings(where: Deployment) -> tuple[str, ...]:
    """Return what a user should know about the workload: a context beyond what the model was made for."""
    tokens, limit = where.workload.final_context_tokens, where.model.max_context_tokens
    if tokens <= limit:
        return ()
    return (f"{where.model.name} was made for {limit:,} tokens; prompt and output together are {tokens:,}.",)


def uniform_assignment(where: Deployment, scheme: Scheme, kv_name: str = "") -> Assignment:
    """Return `scheme` wherever the library and the shapes allow it and 16 bits elsewhere.

    The input embedding follows the head, from which a tied model takes it. CapabilityError if the scheme fits nowhere.
    """
    hardware = where.target.hardware
    scheme_math(scheme, where.target)
    baseline = scheme if not scheme.quantized else baseline_scheme(hardware)
    groups = fused_groups(where.model)
    problems = {group.signature: group_problem(group, scheme, where) for group in unique_groups(groups)}
    schemes = tuple(scheme if problems[group.signature] is None else baseline for group in groups)
    if scheme not in schemes:
        reason = next(text for text in problems.values() if text)
        raise CapabilityError(f"{scheme} fits no layer of {where.model.name} on {hardware.name}: {reason}")
    return Assignment(groups, schemes, schemes[-1], kv_format(where.target, kv_name))


def kv_format(target: Target, name: str = "") -> KvFormat:
    """Return the KV format of that name, the 16-bit one without a name; CapabilityError if the library lacks it."""
    known = candidate_kv_formats(target.hardware, target.library)
    if not name:
        return known[0]
    wanted = parse_kv(name)
    if wanted.quantized and wanted not in known:
        names = ", ".join(kv.name for kv in known)
        raise CapabilityError(
            f"{target.library} has no {wanted} KV cache on {target.hardware.name} that we know of; it has {names}."
        )
    return wanted


def unique_groups(groups: tuple[FusedGroup, ...]) -> tuple[FusedGroup, ...]:
    """Return the first group of each signature."""
    return tuple({group.signature: group for group in reversed(groups)}.values())


def shard_outputs(layer: Layer, deployment: Deployment) -> int:
    """Return the outputs that each device has of a layer divided by columns; KV heads are repeated, not divided.

    Source: vLLM, model_executor/layers/linear.py, QKVParallelLinear (num_kv_head_replicas).
    """
    part = -(-layer.n // deployment.target.gpu_count)
    if layer.role in ("k", "v") and layer.block_index is not None:
        attention = deployment.model.blocks[layer.block_index].attention
        return max(part, attention.head_dim) if isinstance(attention, Attention) else part
    return part


def group_problem(group: FusedGroup, scheme: Scheme, deployment: Deployment) -> str | None:
    """Return why this group cannot take the scheme: its role, its shape, or the shape of its shards; None if it can."""
    if not scheme.quantized:
        return None
    hardware, gpus = deployment.target.hardware, deployment.target.gpu_count
    if group.name in SIXTEEN_BIT_GROUPS:
        return "Routers and projections stay in 16 bits: they are small and choose what everything after them sees."
    for layer in group.layers:
        problem = role_problem(scheme, layer.role, hardware, deployment.target.library)
        if problem:
            return problem
    if group.experts is not None:
        part = -(-group.experts.intermediate // deployment.target.expert_shards)
        shapes = [(part, group.experts.hidden), (group.experts.hidden, part)]
    elif group.split == "row":
        shapes = [(layer.n, -(-layer.k // gpus)) for layer in group.layers]
    else:
        columns = group.split == "column"
        shapes = [(shard_outputs(layer, deployment) if columns else layer.n, layer.k) for layer in group.layers]
    problems = (shape_problem(scheme, n, k, hardware, deployment.target.library) for n, k in shapes)
    return next((problem for problem in problems if problem), None)
