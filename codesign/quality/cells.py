"""What the three tiers give: a loss per fused group and scheme with its interval, before any end-to-end calibration."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.model.groups import SIXTEEN_BIT_GROUPS, FusedGroup, GroupKey, fused_groups
from codesign.model.layers import Model
from codesign.quantize.pieces import Here, Place, Workers
from codesign.quantize.round import check_finite
from codesign.quantize.source import WeightSource
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str], None]
CellKey = tuple[GroupKey, str]


@dataclass(frozen=True, slots=True)
class Cell:
    """A loss in nats; `half_width` is that of its 80 % interval in ln loss."""

    loss_nats: float
    half_width: float

    @property
    def low_nats(self) -> float:
        """Return the lower end of the interval."""
        return self.loss_nats * math.exp(-self.half_width)

    @property
    def high_nats(self) -> float:
        """Return the upper end of the interval."""
        return self.loss_nats * math.exp(self.half_width)


Cells = Mapping[CellKey, Cell]


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure: weights, and the quantized schemes to try in every group; `workers` do what is independent."""

    source: WeightSource
    schemes: tuple[Scheme, ...]
    workers: Workers | None = None

    @property
    def crew(self) -> Workers:
        """Return the workers, this process where none were given."""
        return self.workers or Here(Place(self.source))

    @property
    def model(self) -> Model:
        """Return the model's shapes."""
        return self.source.model

    def groups(self, block_index: int | None) -> tuple[FusedGroup, ...]:
        """Return the groups of a block, or those outside of blocks, that may be quantized."""
        return tuple(group for group in self.all_groups if group.block_index == block_index)

    @property
    def all_groups(self) -> tuple[FusedGroup, ...]:
        """Return every group that may be quantized."""
        return tuple(group for group in fused_groups(self.model) if group.name not in SIXTEEN_BIT_GROUPS)

    def runnable(self, group: FusedGroup) -> tuple[Scheme, ...]:
        """Return the schemes that the shapes of a group allow."""
        return tuple(scheme for scheme in self.schemes if not self.problem(group, scheme))

    def problem(self, group: FusedGroup, scheme: Scheme) -> str:
        """Return why a group cannot be in a scheme, or an empty text."""
        block = scheme.weights.block_size
        if group.k % block:
            return f"{scheme} stores rows in blocks of {block}, which does not divide the {group.k} inputs"
        return ""

    def weight(self, name: str) -> "Tensor":
        """Return a layer's weight in the type that it is stored in; NaN and Inf are refused, naming the layer."""
        head, embedding = self.model.head.name, self.model.embedding.name
        tied = name == head and self.model.tied_embedding and not self.source.has(head + ".weight")
        stored = f"{embedding if tied else name}.weight"
        weight = self.source.tensor(stored)
        check_finite(weight, stored)
        return weight

    def by_layer(self, group: FusedGroup, scheme: Scheme) -> dict[str, Scheme]:
        """Return a group's scheme by layer name."""
        return {layer.name: scheme for layer in group.layers}


def unmeasured(task: Task) -> tuple[str, ...]:
    """Return, one sentence a scheme, which groups it was not measured in and why."""
    found = []
    for scheme in task.schemes:
        problems = {group.label: text for group in task.all_groups if (text := task.problem(group, scheme))}
        if problems:
            why = next(iter(problems.values()))
            found.append(f"{why} of {len(problems)} groups, such as {next(iter(problems))}: not measured there.")
    return tuple(found)
