"""The modules of a planned model under their Hugging Face names, each with the scheme of its fused group."""

from dataclasses import dataclass

from codesign.model.groups import FusedGroup
from codesign.model.layers import Layer, Model, Role
from codesign.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module; the routed experts of a block are one, whose name is that of the list. `role` is None for them."""

    name: str
    role: Role | None
    block_index: int | None
    scheme: Scheme
    method: str = ""

    @property
    def kind(self) -> str:
        """Return the name with the number of its block left out, which equal modules of all blocks share."""
        return self.name if self.block_index is None else self.name.replace(f".{self.block_index}.", ".#.", 1)


def group_modules(group: FusedGroup, scheme: Scheme, method: str) -> tuple[PlannedModule, ...]:
    """Return the modules of one fused group."""
    if group.experts is not None:
        return (PlannedModule(group.experts.name, None, group.block_index, scheme, method),)
    stored = dict.fromkeys(_stored(layer) for layer in group.layers)
    return tuple(PlannedModule(name, role, group.block_index, scheme, method) for name, role in stored)


def _stored(layer: Layer) -> tuple[str, Role]:
    """Return name and role of the module that holds a layer; Phi-3 stores gate and up as one."""
    fused, _, part = layer.name.rpartition(".")
    return (fused, "up") if part == layer.role and part in ("gate", "up") else (layer.name, layer.role)


def embedding_module(model: Model, scheme: Scheme) -> PlannedModule:
    """Return the input embedding with its scheme."""
    return PlannedModule(model.embedding.name, "embedding", None, scheme)
