"""From a plan to a recipe: check it, promote what the tool cannot make, count what that costs, write it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from codesign.cost.as_is import AS_IS
from codesign.cost.deployment import Assignment, Deployment, deploy, kv_format
from codesign.cost.inference import InferencePrediction, predict_inference
from codesign.errors import CapabilityError, InputError
from codesign.hardware.hardware import Hardware
from codesign.model.file import is_model_path, read_entry, resolve_model_name
from codesign.model.groups import FusedGroup, GroupKey, fused_groups
from codesign.model.layers import Model
from codesign.plan.file import GroupPlan, Plan
from codesign.plan.recipes.legality import (
    Bench,
    Choice,
    Promotion,
    first_problem,
    promoted,
    refuse_ragged_shards,
)
from codesign.plan.recipes.modules import embedding_module, group_modules
from codesign.plan.recipes.tool import Export, Tool
from codesign.schemes.capability import baseline_scheme, candidate_kv_formats
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KV_FORMATS, KvFormat, parse_kv
from codesign.schemes.library_table import LIBRARIES
from codesign.schemes.scheme import Scheme
from codesign.setting import Setting
from codesign.units import format_gib, format_seconds


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as text, what was promoted for it, and the sentences about that which also begin the text."""

    tool: Tool
    text: str
    promotions: tuple[Promotion, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A plan with the machine and the model that it names; `source` is the model's id or folder."""

    plan: Plan
    hardware: Hardware
    model: Model
    source: str


def make_recipe(inputs: Inputs, tool: Tool, *, promote: bool = False) -> Recipe:
    """Return the recipe; InputError says what the tool cannot make unless `promote` lets it take wider schemes."""
    bench = make_bench(inputs, tool)
    refuse_ragged_shards(bench.deployment)
    groups = fused_groups(inputs.model)
    if not tool.fuses:
        groups = tuple(part for group in groups for part in _as_planned(group, inputs.plan))
    choices, changes = planned_choices(inputs.plan, groups, promote=promote)
    kv, kv_problem = _kv(inputs, bench)
    if promote:
        choices, more = promoted(bench, choices)
        changes = [*changes, *more]
    _refuse_deployment(inputs.plan, tool, choices)
    why = first_problem(bench, choices) or (None if promote else kv_problem)
    if why is not None:
        raise InputError(f"{tool.title} cannot make this plan: {why} --promote takes the next wider scheme there.")
    remarks = [*_identity_remarks(inputs), *_source_remarks(inputs, tool), *promotion_remarks(changes)]
    if kv_problem:
        remarks.append(f"Promoted: the KV cache from {inputs.plan.kv} to {kv}: {kv_problem}")
    if changes or kv_problem:
        remarks.append(_cost_remark(bench, inputs, choices, kv))
    export = replace(_export(inputs, bench, choices, kv), remarks=tuple(remarks))
    return Recipe(tool, tool.write(export), tuple(changes), tuple(remarks))


def _refuse_deployment(plan: Plan, tool: Tool, choices: Sequence[Choice]) -> None:
    """Raise where no other scheme would help: nothing to make, or devices that the tool cannot use so."""
    if not tool.serves and not any(choice.scheme.quantized for choice in choices):
        raise InputError(f"The plan keeps all weights in 16 bits, so that {tool.title} has nothing to make.")
    why = tool.deployment_problem(plan)
    if why is not None:
        raise InputError(f"{tool.title} cannot serve this plan: {why}")


def promotion_remarks(changes: Sequence[Promotion]) -> list[str]:
    """Return one sentence per kind of promotion, with the groups that it is about counted."""
    labels: dict[tuple[str, str, str], list[Promotion]] = {}
    for change in changes:
        labels.setdefault((change.label.rpartition(".")[2], change.planned, change.promoted), []).append(change)
    return [
        f"Promoted: {_span([one.label for one in members])} from {planned} to {wider}: {members[0].reason}"
        for (_, planned, wider), members in labels.items()
    ]


def _span(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]} ({len(labels)} groups)"


def make_bench(inputs: Inputs, tool: Tool) -> Bench:
    """Return the tool with the deployment that its product runs in: the plan's library if it can, else its usual."""
    plan = inputs.plan
    known = not tool.libraries or plan.library in tool.libraries
    setting = Setting(
        batch=plan.workload.batch,
        prompt_tokens=plan.workload.prompt_tokens,
        output_tokens=plan.workload.output_tokens,
        library=plan.library if known else tool.libraries[0],
        gpu_count=plan.gpu_count,
        expert_parallel=plan.expert_parallel,
        engine=plan.engine,
        thread_count=plan.thread_count,
    )
    return Bench(tool, deploy(inputs.hardware, inputs.model, setting), known_kernels=bool(tool.libraries))


def _as_planned(group: FusedGroup, plan: Plan) -> tuple[FusedGroup, ...]:
    """Return the group whole, or layer by layer where the plan has a scheme for each of them."""
    keys = {(one.block_index, one.name) for one in plan.groups}
    parts = [(group.block_index, layer.role) for layer in group.layers]
    if group.key in keys or not parts or not keys.issuperset(parts):
        return (group,)
    return tuple(replace(group, name=layer.role, layers=(layer,)) for layer in group.layers)


def planned_choices(plan: Plan, groups: Sequence[FusedGroup], *, promote: bool) -> tuple[list[Choice], list[Promotion]]:
    """Return the planned choice of every fused group; one that the plan tears apart takes its widest part."""
    given: dict[GroupKey, GroupPlan] = {}
    for one in plan.groups:
        key = (one.block_index, one.name)
        if key in given:
            raise InputError(f"The plan names the group {_label(key)} twice; plan again.")
        given[key] = one
    choices: list[Choice] = []
    changes: list[Promotion] = []
    for group in groups:
        if group.key in given:
            one = given.pop(group.key)
        else:
            one, change = _mended(group, given, promote=promote)
            changes.append(change)
        choices.append(Choice(group, parse_scheme(one.scheme), one.method))
    if given:
        raise InputError(f"The plan names the group {_label(next(iter(given)))}, which the model has not; plan again.")
    return choices, changes


def _mended(group: FusedGroup, given: dict[GroupKey, GroupPlan], *, promote: bool) -> tuple[GroupPlan, Promotion]:
    """Return the widest scheme of the parts of a torn group; InputError unless promotion is allowed."""
    keys: list[GroupKey] = [(group.block_index, layer.role) for layer in group.layers]
    found = [given.pop(key) for key in keys if key in given]
    if not found or len(found) < len(keys):
        raise InputError(f"The plan has no scheme for the group {group.label}; it is of another model. Plan again.")
    names = " and ".join(sorted({f"{part.name} in {part.scheme}" for part in found}))
    why = f"{group.label} is multiplied as one, and the plan tears it apart: {names}."
    if not promote:
        raise InputError(f"{why} Give its members one scheme; --promote takes the widest.")
    widest = max(found, key=lambda part: parse_scheme(part.scheme).bits_per_weight)
    return widest, Promotion(group.label, names, widest.scheme, why)


def _label(key: GroupKey) -> str:
    return key[1] if key[0] is None else f"{key[0]}.{key[1]}"


def _kv(inputs: Inputs, bench: Bench) -> tuple[KvFormat, str | None]:
    """Return the planned KV format, or the next wider one that tool and library have, with why it must be."""
    wanted = parse_kv(inputs.plan.kv)
    problem = _kv_problem(wanted, bench)
    if problem is None:
        return wanted, None
    wider = sorted((kv for kv in KV_FORMATS.values() if kv.bits >= wanted.bits), key=lambda kv: kv.bits)
    usable = [kv for kv in wider if _kv_problem(kv, bench) is None]
    return (usable[0] if usable and usable[0].quantized else kv_format(bench.deployment.target)), problem


def _kv_problem(kv: KvFormat, bench: Bench) -> str | None:
    """Return why the tool, or the library that runs its product, has no such KV cache."""
    if not kv.quantized:
        return None
    tool, target = bench.tool, bench.deployment.target
    if tool.kv_names and kv.name not in tool.kv_names:
        return f"{tool.title} has no {kv} KV cache ({tool.source})."
    if not tool.libraries:
        return f"{tool.title} has no {kv} KV cache that we know of."
    if kv not in candidate_kv_formats(target.hardware, target.library):
        return f"{LIBRARIES[target.library].title} has no {kv} KV cache on {target.hardware.title} that we know of."
    return None


def _export(inputs: Inputs, bench: Bench, choices: Sequence[Choice], kv: KvFormat) -> Export:
    sixteen = baseline_scheme(bench.deployment.target.hardware)
    modules = [m for choice in choices for m in group_modules(choice.group, choice.scheme, choice.method)]
    embedding = _embedding_scheme(bench, choices, sixteen)
    return Export(
        plan=inputs.plan,
        model=inputs.model,
        modules=(*modules, embedding_module(inputs.model, embedding)),
        kv=kv,
        hardware=inputs.hardware,
        source=inputs.source,
    )


def _embedding_scheme(bench: Bench, choices: Sequence[Choice], sixteen: Scheme) -> Scheme:
    """Return the head's scheme where embeddings can have one or are the head itself, else 16 bits."""
    target = bench.deployment.target
    follows = not bench.known_kernels or LIBRARIES[target.library].quantizes_embedding
    return choices[-1].scheme if follows or bench.deployment.model.tied_embedding else sixteen


def _cost_remark(bench: Bench, inputs: Inputs, choices: Sequence[Choice], kv: KvFormat) -> str:
    """Return what the promotions cost in memory and in time per token."""
    after = _prediction(bench.deployment, choices, kv)
    if after is None:
        return "What that costs cannot be predicted: this project has no kernel table for the tool."
    planned = inputs.plan.totals
    weights = f"{format_gib(planned.memory.weight_bytes)} to {format_gib(after.memory.weight_bytes)}"
    tpot = f"{format_seconds(planned.tpot_s.value)} to {format_seconds(after.tpot_s.value)}"
    fits = "" if after.fits else f"; {format_gib(after.memory.total_bytes)} in all no longer fit"
    return f"That takes the weights from {weights} and the time per output token from {tpot}{fits}."


def _prediction(deployment: Deployment, choices: Sequence[Choice], kv: KvFormat) -> InferencePrediction | None:
    schemes = tuple(choice.scheme for choice in choices)
    assignment = Assignment(tuple(choice.group for choice in choices), schemes, schemes[-1], kv)
    try:
        return predict_inference(deployment, assignment)
    except CapabilityError:
        return None


def _identity_remarks(inputs: Inputs) -> tuple[str, ...]:
    """Return warnings where model or machine are not what they were when the plan was made."""
    plan, pairs = inputs.plan, _digests(inputs)
    return tuple(
        f"The {thing} is not the one that was planned for (its file has changed since); plan again to be sure."
        for thing, (then, now) in pairs.items()
        if then != now and plan.groups
    )


def _source_remarks(inputs: Inputs, tool: Tool) -> tuple[str, ...]:
    """Return that the recipe of a plan which states a checkpoint needs other weights than that one's."""
    if inputs.plan.objective != AS_IS or tool.serves:
        return ()
    return (
        f"The plan states what {inputs.plan.model} is stored in already; this recipe makes the like from 16-bit "
        "weights, so put those in the place of its source.",
    )


def _digests(inputs: Inputs) -> Mapping[str, tuple[str, str]]:
    return {
        "model": (inputs.plan.model_digest, inputs.model.digest),
        "machine": (inputs.plan.hardware_digest, inputs.hardware.digest),
    }


def model_source(named: str) -> str:
    """Return where a tool finds the weights: the Hugging Face id of a catalog model, else the path as given."""
    if is_model_path(named):
        return named
    ids: list[str] = read_entry(resolve_model_name(named))["hf_ids"]
    return ids[0]
