"""Tier `kl`: the real KL divergence with one fused group in another scheme, everything else exact.

The hidden states before the group's block are at hand, so that only the rest of the network runs again, for all
schemes of a group together. Each group is kept on disk when it is done.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codesign.model.groups import FusedGroup
from codesign.quality.cells import Cell, CellKey, Progress, Task
from codesign.quality.divergence import divergences, mean_divergence, reading, run_blocks, started, stepped
from codesign.quality.rounded import RoundedSource
from codesign.quality.state import State
from codesign.quantize.network import Batch, Network
from codesign.quantize.pieces import Piece, Place
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_NORMAL_80 = 1.2816
_WIDTH_MAX = 3.0


def estimated_s(task: Task, network: Network, windows: "Tensor", state: State) -> float:
    """Return how long what is still to be done is going to take, going by one window in one block and in the head."""
    count, blocks, heads = len(task.model.blocks), 2 * len(task.model.blocks), 0
    for group in task.all_groups:
        cells = len(_todo(task, group, state))
        blocks += cells * (count if group.block_index is None else count - group.block_index)
        heads += cells
    first = started(network, windows[:1])
    begin = time.perf_counter()
    end = stepped(network, 0, first)
    middle = time.perf_counter()
    divergences(network, end, network, end)
    return len(windows) * (blocks * (middle - begin) + heads * (time.perf_counter() - middle))


def swap_cells(
    task: Task, network: Network, windows: "Tensor", state: State, progress: Progress
) -> dict[CellKey, Cell]:
    """Return the cells of every group and scheme by running the network with each swapped in."""
    crew = task.crew
    for _, found in crew.run(_pieces(replace(task, workers=crew), network, windows, state, progress)):
        state.keep(found)
    return _read(task, state)


@dataclass(frozen=True, slots=True, eq=False)
class _Variants:
    """The schemes to try in a group."""

    group: FusedGroup
    schemes: tuple[Scheme, ...]
    device: str

    def piece(self, function: Callable[..., Any], *arguments: Any) -> Piece:
        """Return what finds their losses."""
        return Piece(self.group.label, function, (self, *arguments), on_gpu=self.device != "cpu")

    def values(self, losses: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Return the losses of all windows as they are kept."""
        return {_name(self.group, scheme): _value(loss) for scheme, loss in zip(self.schemes, losses, strict=True)}


def _pieces(task: Task, network: Network, windows: "Tensor", state: State, progress: Progress) -> Iterator[Piece]:
    """Yield a piece for each group of a block, and for each scheme outside of blocks."""
    exact_ends = task.crew.share(run_blocks(network, windows, lambda step: progress(f"exact, {step}")))
    batches = started(network, windows)
    for index in range(network.block_count):
        todo = {group: schemes for group in task.groups(index) if (schemes := _todo(task, group, state))}
        entering = task.crew.share(batches) if todo else None
        for group, schemes in todo.items():
            progress(f"{group.label} of {network.block_count} blocks")
            yield _Variants(group, schemes, network.device).piece(_block_losses, index, entering, exact_ends)
        batches = stepped(network, index, batches)
    for group in task.groups(None):
        for scheme in _todo(task, group, state):
            progress(f"{group.label} in {scheme}")
            yield _Variants(group, (scheme,), network.device).piece(_outside_losses, windows, exact_ends)


def _block_losses(
    place: Place, variants: _Variants, index: int, batches: Sequence[Batch], exact_ends: Sequence[Batch]
) -> dict[str, Any]:
    """Return what is to be kept of a group in a block."""
    task, network = Task(place.source, variants.schemes), place.network(variants.device)
    swaps = [task.by_layer(variants.group, scheme) for scheme in variants.schemes]
    finished = _rest(network, index, [_swapped(network, index, swap, batches) for swap in swaps])
    return variants.values([divergences(network, exact_ends, network, end) for end in finished])


def _outside_losses(
    place: Place, variants: _Variants, windows: "Tensor", exact_ends: Sequence[Batch]
) -> dict[str, Any]:
    """Return what is to be kept of a group outside of blocks."""
    task, network, losses = Task(place.source, variants.schemes), place.network(variants.device), []
    for scheme in variants.schemes:
        other = Network(RoundedSource(place.source, task.by_layer(variants.group, scheme)), variants.device)
        ends = run_blocks(other, windows, lambda _: None)
        losses.append(divergences(network, exact_ends, other, ends))
    return variants.values(losses)


def _todo(task: Task, group: FusedGroup, state: State) -> tuple[Scheme, ...]:
    return tuple(scheme for scheme in task.runnable(group) if state.get(_name(group, scheme)) is None)


def _name(group: FusedGroup, scheme: Scheme) -> str:
    return f"{group.label} {scheme.name}"


def _swapped(network: Network, index: int, schemes: Mapping[str, Scheme], batches: Sequence[Batch]) -> list[Batch]:
    """Return the windows behind a block some of whose layers are in other schemes."""
    with reading(network, RoundedSource(network.source, schemes)):
        return stepped(network, index, batches)


def _rest(network: Network, index: int, ends: list[list[Batch]]) -> list[list[Batch]]:
    """Return the windows of every variant behind the last block; each block is loaded once for all of them."""
    for later in range(index + 1, network.block_count):
        joined = stepped(network, later, [batch for end in ends for batch in end])
        size = len(joined) // max(len(ends), 1)
        ends = [joined[first : first + size] for first in range(0, len(joined), size)] if joined else ends
    return ends


def _value(by_window: Sequence[float]) -> list[float]:
    """Return the loss and the half-width of its interval in ln loss."""
    kl = mean_divergence(by_window)
    value = max(kl.kl_nats, 0.0)
    width = _NORMAL_80 * kl.standard_error_nats / value if value > 0 else 0.0
    return [value, min(width, _WIDTH_MAX)]


def _read(task: Task, state: State) -> dict[CellKey, Cell]:
    return {
        (group.key, scheme.name): Cell(*state.get(_name(group, scheme)))
        for group in task.all_groups
        for scheme in task.runnable(group)
    }
