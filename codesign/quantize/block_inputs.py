"""The inputs of a block's layers, gathered while calibration text runs through the block."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.model.layers import Layer
from codesign.quantize.network import Batch, Network
from codesign.quantize.source import WeightSource
from codesign.quantize.statistics import InputStatistics, StatisticsSum
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLE_TOKENS = 512


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that share an input, under the names that their weights are stored with, and the schemes they get."""

    layers: tuple[Layer, ...]
    schemes: Mapping[str, Scheme]

    @property
    def quantized(self) -> tuple[Layer, ...]:
        """Return the layers that are quantized."""
        return tuple(layer for layer in self.layers if layer.name in self.schemes)


def layer_groups(
    layers: Iterable[Layer], schemes: Mapping[str, Scheme], source: WeightSource
) -> tuple[LayerGroup, ...]:
    """Return the groups with something to quantize, in the order in which they are multiplied."""
    members: dict[str, dict[str, Layer]] = {}
    for layer in layers:
        name = stored_name(layer, source)
        members.setdefault(layer.group, {}).setdefault(name, replace(layer, name=name))
        if layer.name in schemes and name != layer.name:
            schemes = {**schemes, name: schemes[layer.name]}
    groups = []
    for group in members.values():
        chosen = {name: schemes[name] for name in group if name in schemes and schemes[name].quantized}
        if chosen:
            groups.append(LayerGroup(tuple(group.values()), chosen))
    return tuple(groups)


def stored_name(layer: Layer, source: WeightSource) -> str:
    """Return the name of the module that holds a layer; Phi-3 stores gate and up as one."""
    fused = layer.name.rpartition(".")[0]
    return fused if source.has(fused + ".weight") else layer.name


@dataclass(frozen=True, slots=True, eq=False)
class GroupInputs:
    """What layers that share an input are given: statistics, mean squares [k] and some rows [m, k] of it."""

    statistics: InputStatistics
    mean_square: "Tensor"
    sample: "Tensor"


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBlock:
    """A block with its weights, and the calibration text as it enters it."""

    network: Network
    index: int
    module: Any
    batches: Sequence[Batch]

    @property
    def prefix(self) -> str:
        """Return what the names of the block's parameters begin with."""
        return self.network.block_name(self.index) + "."

    def layer(self, name: str) -> Any:
        """Return the module of a layer by its full name."""
        return self.module.get_submodule(name.removeprefix(self.prefix))

    def has(self, name: str) -> bool:
        """Return whether a module of this full name is here; layers that are stored as one have no own."""
        return any(name == self.prefix + inner for inner, _ in self.module.named_modules())

    def parameter(self, name: str) -> Any:
        """Return a parameter by its full name."""
        return self.module.get_parameter(name.removeprefix(self.prefix))

    def value(self, name: str) -> "Tensor":
        """Return the float32 values of a parameter, on the CPU."""
        value: Tensor = self.parameter(name).data.cpu()
        return value

    def weight(self, name: str) -> "Tensor":
        """Return the float32 weights that the layer runs with, on the CPU."""
        return self.value(name + ".weight")

    def assign(self, values: Mapping[str, "Tensor"]) -> None:
        """Give parameters new values, where the block runs."""
        for name, value in values.items():
            self.parameter(name).data = value.to(self.network.device)

    def run(self, batch: Batch) -> "Tensor":
        """Return the hidden states behind the block."""
        return self.network.step(self.index, self.module, batch).hidden


class _Reached(Exception):  # noqa: N818 - no error: it ends a run
    """The layer whose inputs are wanted has them: the rest need not run."""


class InputSum:
    """Adds up the inputs of one group over all batches."""

    def __init__(self, channels: int, token_count: int, *, with_hessian: bool) -> None:
        import torch

        self._statistics = StatisticsSum(channels, with_hessian=with_hessian)
        self._squares = torch.zeros(channels, dtype=torch.float64)
        self._sample: list[Tensor] = []
        self._step = max(token_count // _SAMPLE_TOKENS, 1)

    def add(self, x: "Tensor") -> None:
        """Add a batch of inputs [..., k]."""
        rows = x.detach().reshape(-1, x.shape[-1]).float().cpu()
        self._statistics.add(rows)
        self._squares += rows.square().sum(dim=0).double()
        self._sample.append(rows[self._step // 2 :: self._step].clone())

    def result(self) -> GroupInputs:
        """Return what was added up."""
        import torch

        found = self._statistics.result()
        return GroupInputs(found, (self._squares / found.token_count).float(), torch.cat(self._sample))


def group_inputs(
    block: LoadedBlock, groups: Iterable[LayerGroup], *, with_hessian: bool, stop: bool = False
) -> list[GroupInputs]:
    """Return the inputs of groups of layers; with `stop` a run ends at the first of them that it meets."""
    import torch

    tokens = sum(batch.ids.numel() for batch in block.batches)
    with ExitStack() as stack, torch.inference_mode():
        sums = []
        for group in groups:
            module = block.layer(group.layers[0].name)
            sums.append(InputSum(module.weight.shape[1], tokens, with_hessian=with_hessian))
            stack.callback(module.register_forward_pre_hook(_adding(sums[-1], stop=stop)).remove)
        for batch in block.batches:
            try:
                block.run(batch)
            except _Reached:
                continue
            except InputError as error:
                raise InputError(f"{block.prefix[:-1]}: {error}") from error
    return [total.result() for total in sums]


def head_inputs(network: Network, batches: Sequence[Batch], *, with_hessian: bool) -> GroupInputs:
    """Return the inputs of the head behind the last block."""
    import torch

    head = network.transformer.get_output_embeddings()
    total = InputSum(head.weight.shape[1], sum(batch.ids.numel() for batch in batches), with_hessian=with_hessian)
    hook = head.register_forward_pre_hook(_adding(total, stop=True))
    try:
        for batch in batches:
            with torch.inference_mode():
                try:
                    network.logits(batch)
                except _Reached:
                    continue
    finally:
        hook.remove()
    return total.result()


def _adding(total: InputSum, *, stop: bool) -> Any:
    def hook(_: Any, arguments: tuple["Tensor", ...]) -> None:
        total.add(arguments[0])
        if stop:
            raise _Reached

    return hook
