"""How the loss of a uniform plan spreads over fused groups: an assumed shape by size, role and depth."""

from codesign.model.groups import SIXTEEN_BIT_GROUPS, FusedGroup, GroupKey, fused_groups
from codesign.model.layers import Model

# Assumed, and mild, because which end dominates changes with the model: down-projections, values and outputs are the
# sensitive roles, the first blocks and the last the sensitive depths (llama.cpp's mixes spend bits there).
_ROLE = {"down": 1.5, "shared_down": 1.5, "o": 1.3, "qkv": 1.2, "v": 1.3, "head": 2.0}
_FIRST_BLOCKS = (2.5, 1.7, 1.3)
_LAST_BLOCK = 1.7


def layer_shape(model: Model) -> dict[GroupKey, float]:
    """Return each body group's share of the loss of a uniform plan; the shares are positive and sum to 1.

    Assumes that losses of groups add up, which over-counts large ones (`QualityTable.calibration` corrects it).
    Body means what published weight-only tables quantize: not the head, not routers.
    """
    raw = _body_weights(model)
    total = sum(raw.values())
    return {key: value / total for key, value in raw.items()}


def head_share(model: Model) -> float:
    """Return the loss of quantizing the head, too, as a fraction of the body's loss with the same scheme.

    The published losses leave the head in 16 bits, so this comes on top. It also stands for the input embedding,
    which takes the head's scheme and hurts little (pythia-1.4b: 0.0013 nats at 4 bits, llm-compressor).
    """
    return model.head.weight_count * _ROLE["head"] / sum(_body_weights(model).values())


def _body_weights(model: Model) -> dict[GroupKey, float]:
    last = len(model.blocks) - 1
    return {
        group.key: _active_weights(group) * _ROLE.get(group.name, 1.0) * _depth_factor(group.block_index, last)
        for group in fused_groups(model)
        if group.name not in SIXTEEN_BIT_GROUPS and group.name != "head"
    }


def _active_weights(group: FusedGroup) -> float:
    """Return the weights that one token meets; an expert that is not routed to hurts nothing."""
    if group.experts is None:
        return float(group.weight_count)
    return group.weight_count * group.experts.top_k / group.experts.expert_count


def _depth_factor(block_index: int | None, last: int) -> float:
    if block_index is None:
        return 1.0
    if block_index < len(_FIRST_BLOCKS):
        return _FIRST_BLOCKS[block_index]
    return _LAST_BLOCK if block_index == last else 1.0
