"""Fused groups: the layers that a runtime merges into one multiplication and that therefore share a scheme."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from codesign.model.layers import Experts, Layer, Model

GroupKey = tuple[int | None, str]
Split = Literal["column", "row", "replicated"]

# How tensor parallelism cuts a group: columns of the output (n), rows of the input (k), or not at all.
# Source: Megatron-LM (arXiv 1909.08053) section 3; latent down-projections are replicated as in vLLM and SGLang.
SPLITS: dict[str, Split] = {
    "qkv": "column",
    "q_b": "column",
    "kv_b": "column",
    "gate_up": "column",
    "shared_gate_up": "column",
    "head": "column",
    "o": "row",
    "down": "row",
    "shared_down": "row",
}
SIXTEEN_BIT_GROUPS = frozenset({"router", "shared_router", "project_in", "project_out"})


@dataclass(frozen=True)  # no slots: a plan asks for each signature hundreds of times, so that it is kept
class FusedGroup:
    """Layers with one scheme: dense layers that share their input, or the experts of a block (never both)."""

    block_index: int | None
    name: str
    layers: tuple[Layer, ...]
    experts: Experts | None = None

    @property
    def key(self) -> GroupKey:
        """Return what identifies the group within its model."""
        return (self.block_index, self.name)

    @property
    def label(self) -> str:
        """Return the key as text, such as `12.gate_up` or `head`."""
        return self.name if self.block_index is None else f"{self.block_index}.{self.name}"

    @property
    def n(self) -> int:
        """Return the output features of the merged multiplication (of one expert's up-projections)."""
        return sum(layer.n for layer in self.layers)

    @property
    def k(self) -> int:
        """Return the input features that the members share."""
        return self.layers[0].k

    @property
    def weight_count(self) -> int:
        """Return the weights of all members, biases excluded."""
        if self.experts is not None:
            return self.experts.expert_count * self.experts.weight_count_per_expert
        return sum(layer.weight_count for layer in self.layers)

    @property
    def split(self) -> Split:
        """Return how tensor parallelism cuts the group."""
        return SPLITS.get(self.name, "replicated")

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """Return what determines the group's bytes and time; groups of equal blocks share it."""
        if self.experts is not None:
            experts = self.experts
            shape = (experts.hidden, experts.intermediate, experts.expert_count, experts.top_k, experts.gated)
            return ("experts", *shape)
        return (self.name, self.k, tuple(layer.n for layer in self.layers))

    def shard(self, gpu_count: int) -> tuple[int, int]:
        """Return (n, k) of the part that one of `gpu_count` GPUs multiplies; ragged parts are rounded up."""
        if self.split == "column":
            return -(-self.n // gpu_count), self.k
        if self.split == "row":
            return self.n, -(-self.k // gpu_count)
        return self.n, self.k


def fused_groups(model: Model) -> tuple[FusedGroup, ...]:
    """Return every group that a forward pass multiplies: blocks in order, layers outside them, the head last."""
    groups: list[FusedGroup] = []
    for block in model.blocks:
        groups.extend(_merge(block.layers, block.index))
        if block.experts is not None:
            groups.append(FusedGroup(block.index, "experts", (), block.experts))
    groups.extend(_merge(model.outside_layers, None))
    groups.append(FusedGroup(None, "head", (model.head,)))
    return tuple(groups)


def _merge(layers: tuple[Layer, ...], block_index: int | None) -> list[FusedGroup]:
    members: dict[str, list[Layer]] = {}
    for layer in layers:
        members.setdefault(layer.group, []).append(layer)
    return [FusedGroup(block_index, name, tuple(group)) for name, group in members.items()]
