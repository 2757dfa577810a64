"""Tier `kl`: the real KL divergence with one fused group in another scheme, everything else exact.

The hidden states before the group's block are at hand, so that only the rest of the network runs again, for all
schemes of a group together. Each group is kept on disk when it is done.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codesign.model.groups import FusedGroup
from codesign.quality.cells import Cell, CellKey, Progress, Task
from codesign.quality.divergence import divergences, mean_divergence, reading, run_blocks, started, stepped
from codesign.quality.rounded import RoundedSource
from codesign.quality.state import State
from codesign.quantize.network import Batch, Network
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
    exact_ends = run_blocks(network, windows, lambda step: progress(f"exact, {step}"))
    batches = started(network, windows)
    for index in range(network.block_count):
        for group in task.groups(index):
            todo = _todo(task, group, state)
            progress(f"{group.label} of {network.block_count} blocks")
            ends = [_swapped(task, network, index, task.by_layer(group, scheme), batches) for scheme in todo]
            finished = _rest(network, index, ends)
            _keep(state, group, todo, [divergences(network, exact_ends, network, end) for end in finished])
        batches = stepped(network, index, batches)
    for group in task.groups(None):
        for scheme in _todo(task, group, state):
            progress(f"{group.label} in {scheme}")
            other = Network(RoundedSource(task.source, task.by_layer(group, scheme)), network.device)
            ends_of_head = run_blocks(other, windows, progress)
            _keep(state, group, [scheme], [divergences(network, exact_ends, other, ends_of_head)])
    return _read(task, state)


def _todo(task: Task, group: FusedGroup, state: State) -> tuple[Scheme, ...]:
    return tuple(scheme for scheme in task.runnable(group) if state.get(_name(group, scheme)) is None)


def _name(group: FusedGroup, scheme: Scheme) -> str:
    return f"{group.label} {scheme.name}"


def _swapped(
    task: Task, network: Network, index: int, schemes: Mapping[str, Scheme], batches: Sequence[Batch]
) -> list[Batch]:
    """Return the windows behind a block some of whose layers are in other schemes."""
    with reading(network, RoundedSource(task.source, schemes)):
        return stepped(network, index, batches)


def _rest(network: Network, index: int, ends: list[list[Batch]]) -> list[list[Batch]]:
    """Return the windows of every variant behind the last block; each block is loaded once for all of them."""
    for later in range(index + 1, network.block_count):
        joined = stepped(network, later, [batch for end in ends for batch in end])
        size = len(joined) // max(len(ends), 1)
        ends = [joined[first : first + size] for first in range(0, len(joined), size)] if joined else ends
    return ends


def _keep(state: State, group: FusedGroup, schemes: Sequence[Scheme], found: Sequence[Sequence[float]]) -> None:
    values: dict[str, Any] = {}
    for scheme, by_window in zip(schemes, found, strict=True):
        kl = mean_divergence(by_window)
        value = max(kl.kl_nats, 0.0)
        width = _NORMAL_80 * kl.standard_error_nats / value if value > 0 else 0.0
        values[_name(group, scheme)] = [value, min(width, _WIDTH_MAX)]
    if values:
        state.keep(values)


def _read(task: Task, state: State) -> dict[CellKey, Cell]:
    return {
        (group.key, scheme.name): Cell(*state.get(_name(group, scheme)))
        for group in task.all_groups
        for scheme in task.runnable(group)
    }
