"""A plan that states what a checkpoint already is, with what is predicted for it; nothing is chosen."""

from collections import Counter
from dataclasses import replace

from codesign.checkpoint.stored import Checkpoint
from codesign.cost.as_is import AS_IS, AsIs
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.prediction import add_predictions
from codesign.cost.step import decode_step, group_times, prefill_step
from codesign.model.groups import FusedGroup, fused_groups
from codesign.plan.file import GroupPlan, Plan
from codesign.plan.make import described_plan, sixteen_bit_kv
from codesign.quality.estimate import LossEstimate
from codesign.quality.table import QualityTable
from codesign.schemes.capability import baseline_scheme
from codesign.schemes.scheme import Scheme

_STORED = "stored so; other bits need the 16-bit weights"
_SIXTEEN = "stored in 16 bits or more"


def as_is_plan(where: Deployment, checkpoint: Checkpoint, found: AsIs, quality: QualityTable) -> Plan:
    """Return the plan that assigns to every group what the checkpoint has it in.

    A group that a GGUF file stores in several schemes is one entry per layer, named by its role.
    """
    stated = found.assignment
    sixteen = baseline_scheme(where.target.hardware)
    baseline = Assignment(stated.groups, (sixteen,) * len(stated.groups), sixteen, sixteen_bit_kv(where))
    groups = _group_plans(where, checkpoint, stated, quality)
    losses = [*(group.loss_nats for group in groups), quality.kv_loss(stated.kv.name)]
    known = [loss for loss in losses if loss is not None]
    loss = add_predictions(known) if len(known) == len(losses) else None
    return replace(
        described_plan(where, stated, baseline, loss), objective=AS_IS, groups=groups, warnings=found.warnings
    )


def _group_plans(
    where: Deployment, checkpoint: Checkpoint, stated: Assignment, quality: QualityTable
) -> tuple[GroupPlan, ...]:
    wholes = {group.key: group for group in fused_groups(checkpoint.model)}
    stored = _stored_bytes(checkpoint)
    plans = []
    for group, scheme in zip(stated.groups, stated.schemes, strict=True):
        whole = wholes[group.key]
        torn = group.experts is None and len(group.layers) < len(whole.layers)
        for part in [replace(group, layers=(layer,)) for layer in group.layers] if torn else [group]:
            one = _group_plan(where, part, scheme, _loss(quality, part, whole, scheme))
            names = [part.experts.name] if part.experts else [layer.name for layer in part.layers]
            size = float(sum(stored[name] for name in names))
            plans.append(replace(one, name=part.layers[0].role if torn else part.name, memory_bytes=size))
    return tuple(plans)


def _stored_bytes(checkpoint: Checkpoint) -> Counter[str]:
    """Return bytes by the name of the layer; those of the input embedding count to the head, as in chosen plans."""
    sums: Counter[str] = Counter()
    for layer in checkpoint.layers:
        model = checkpoint.model
        sums[model.head.name if layer.name == model.embedding.name else layer.name] += layer.byte_count
    return sums


def _loss(quality: QualityTable, part: FusedGroup, whole: FusedGroup, scheme: Scheme) -> LossEstimate | None:
    """Return the loss of a part of a group: its share by weights of what the whole would lose."""
    found = quality.estimate(whole.key, scheme.name)
    return None if found is None else found.scaled(part.weight_count / whole.weight_count)


def _group_plan(where: Deployment, part: FusedGroup, scheme: Scheme, loss: LossEstimate | None) -> GroupPlan:
    decode, prefill = (
        group_times([part], scheme, where.target, step)
        for step in (decode_step(where.workload), prefill_step(where.workload))
    )
    return GroupPlan(
        block_index=part.block_index,
        name=part.name,
        scheme=scheme.name,
        bits_per_weight=scheme.bits_per_weight,
        memory_bytes=0.0,
        decode_s=decode.of_group(0),
        prefill_s=prefill.of_group(0),
        bound=decode.bound[0],
        loss_nats=None if loss is None else loss.prediction,
        method=loss.method if loss is not None and scheme.quantized else "",
        reason=_STORED if scheme.quantized else _SIXTEEN,
    )
