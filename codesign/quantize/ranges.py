"""Ranges of static activations, and outlier channels, of the linear layers of a network. Streams block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codesign.model.groups import fused_groups
from codesign.quantize.calibrate import ActivationRange, Histogram, HistogramSum, activation_range
from codesign.quantize.network import Batch, Network
from codesign.quantize.statistics import OUTLIER_TIMES_MEDIAN, StatisticsSum

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str], None]
_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class InputsSeen:
    """What reached layers that share their inputs: all magnitudes, the largest of every channel [k], X^T X [k, k]."""

    layers: tuple[str, ...]
    histogram: Histogram
    largest: "Tensor"
    hessian: "Tensor | None" = None

    @property
    def outlier_channels(self) -> tuple[int, ...]:
        """Return the channels whose largest magnitude is over 20 times the median one, the strongest first."""
        order = self.largest.argsort(descending=True, stable=True)
        above = self.largest[order] > OUTLIER_TIMES_MEDIAN * self.largest.median()
        return tuple(order[above].tolist())

    @property
    def outlier_ratio(self) -> float:
        """Return the largest magnitude over the median one of the channels; infinite if most channels are dead."""
        median = float(self.largest.median())
        return float(self.largest.max()) / median if median > 0 else float("inf")


class InputsSum:
    """Adds up the inputs of layers that share them."""

    def __init__(self, layers: tuple[str, ...], channels: int, *, with_hessian: bool = False) -> None:
        self.layers, self._magnitudes = layers, HistogramSum()
        self._channels = StatisticsSum(channels, with_hessian=with_hessian)

    def add(self, x: "Tensor") -> None:
        """Add a batch [..., k]."""
        here = x.detach().cpu()
        self._channels.add(here)
        self._magnitudes.add(here)

    def result(self) -> InputsSeen:
        """Return what was added so far."""
        statistics = self._channels.result()
        return InputsSeen(self.layers, self._magnitudes.result(), statistics.largest, statistics.hessian)


def network_inputs(network: Network, windows: "Tensor", progress: Progress = lambda _: None) -> tuple[InputsSeen, ...]:
    """Return what reaches the linear layers of every block and the head, from token ids [windows, t]."""
    import torch

    seen: list[InputsSeen] = []
    with torch.inference_mode():
        batches = start_batches(network, windows)
        for index in range(network.block_count):
            progress(f"block {index + 1} of {network.block_count}")
            sums = [InputsSum(*shared) for shared in shared_inputs(network, index)]
            with network.block(index) as block, watching(network, index, block, sums):
                batches = [network.step(index, block, batch) for batch in batches]
            seen += [one.result() for one in sums]
        progress("head")
        seen.append(_head_inputs(network, batches))
    return tuple(seen)


def activation_ranges(seen: tuple[InputsSeen, ...], method: str, bits: int = 8) -> Mapping[str, ActivationRange]:
    """Return the range of every layer by its name, as one of the methods of `calibrate` chooses it."""
    ranges = {}
    for inputs in seen:
        chosen = activation_range(inputs.histogram, method, bits)
        ranges.update(dict.fromkeys(inputs.layers, chosen))
    return ranges


def outlier_report(seen: tuple[InputsSeen, ...]) -> tuple[InputsSeen, ...]:
    """Return the inputs that have outlier channels, those that stand out most first."""
    return tuple(sorted((one for one in seen if one.outlier_channels), key=lambda one: -one.outlier_ratio))


def start_batches(network: Network, windows: "Tensor") -> list[Batch]:
    """Return windows [count, t] as they enter the first block, in batches that bound the memory of a step."""
    return [network.start(part) for part in windows.split(max(_BATCH_TOKENS // windows.shape[1], 1))]


def shared_inputs(network: Network, index: int) -> list[tuple[tuple[str, ...], int]]:
    """Return the names of the layers of a block that share their inputs, the members of a fused group, and channels."""
    groups = (group for group in fused_groups(network.source.model) if group.block_index == index)
    return [(tuple(layer.name for layer in group.layers), group.k) for group in groups]


@contextmanager
def watching(network: Network, index: int, block: Any, sums: Sequence[InputsSum]) -> Iterator[None]:
    """Add what reaches the layers of a block to the sums while it runs."""
    with ExitStack() as stack:
        for one in sums:
            module = layer_module(network, index, block, one.layers[0])
            stack.callback(module.register_forward_pre_hook(_adding(one)).remove)
        yield


def layer_module(network: Network, index: int, block: Any, layer: str) -> Any:
    """Return the module of a layer of a block."""
    return block.get_submodule(layer.removeprefix(network.block_name(index) + "."))


def _adding(total: InputsSum) -> Callable[..., None]:
    def hook(_: Any, arguments: tuple["Tensor", ...]) -> None:
        total.add(arguments[0])

    return hook


def _head_inputs(network: Network, batches: list[Batch]) -> InputsSeen:
    """Return what reaches the head, which is not multiplied: its outputs are the largest tensors of all."""
    layer = network.source.model.head
    total = InputsSum((layer.name,), layer.k)
    head = network.transformer.get_output_embeddings()

    def watch(hidden: "Tensor") -> "Tensor":
        total.add(hidden)
        return hidden

    head.forward = watch
    try:
        for batch in batches:
            network.logits(batch)
    finally:
        del head.forward
    return total.result()
