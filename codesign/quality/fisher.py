"""Tier `fisher`: the KL divergence of small changes from one backward pass, block by block from the head down.

Only one block's weights are in memory at a time, and the hidden states that enter every block. After each block the
gradients are kept on disk, so that a run that was stopped goes on with the next one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.model.groups import FusedGroup
from codesign.quality.cells import Cell, CellKey, Progress, Task
from codesign.quality.divergence import started, stepped
from codesign.quality.probe import LayerProbe, kept_difference, watched
from codesign.quality.rounded import rounded_weight
from codesign.quality.state import State
from codesign.quantize.network import Batch, Network
from codesign.quantize.pieces import Piece, Place
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_GRADIENT, _NEXT, _HEAD = "gradient", "next_block", "head"
_NORMAL_80 = 1.2816
# Assumed, not fitted: cells are isolated, of second order and of few windows.
_HALF_WIDTH = math.log(1.5)


@dataclass(eq=False)
class _Pass:
    """The state of the backward pass: windows as they enter each block, gradients [windows, t, hidden] behind it."""

    task: Task
    network: Network
    state: State
    progress: Progress
    batches: Sequence[Batch]
    entering: list["Tensor"]
    gradient: "Tensor"
    head: Mapping[str, "Tensor"] = field(default_factory=dict)


def fisher_cells(
    task: Task, network: Network, windows: "Tensor", state: State, progress: Progress
) -> dict[CellKey, Cell]:
    """Return the cells of every group and scheme, from one forward and one backward pass over the windows."""
    import torch

    kept = state.tensors()
    batches = started(network, windows)
    todo = int(kept[_NEXT]) if kept else network.block_count
    entering, ends = _forward(network, batches, todo, progress, whole=not kept)
    gradient = kept.get(_GRADIENT, torch.empty(0)).to(network.device)
    passed = _Pass(task, network, state, progress, batches, entering, gradient)
    passed.head = {name.removeprefix(_HEAD): value for name, value in kept.items() if name.startswith(_HEAD)}
    if not kept:
        _head(passed, ends)
    for index in reversed(range(todo)):
        _block(passed, index)
    _outside(passed)
    return _read(task, state)


def _forward(
    network: Network, batches: Sequence[Batch], count: int, progress: Progress, *, whole: bool
) -> tuple[list["Tensor"], list[Batch]]:
    """Return the hidden states that enter the first `count` blocks, in 16 bits, and the windows behind the last."""
    import torch

    entering, ends = [], list(batches)
    for index in range(count):
        progress(f"forward, block {index + 1} of {network.block_count}")
        entering.append(torch.cat([batch.hidden for batch in ends]).to(torch.bfloat16))
        if whole or index < count - 1:
            ends = stepped(network, index, ends)
    return entering, ends


def _probes(task: Task, groups: Sequence[FusedGroup], device: str) -> dict[str, LayerProbe]:
    """Return a probe of each layer of the groups, whose rounded weights the workers find."""
    schemes = {layer.name: task.runnable(group) for group in groups for layer in group.layers}
    pieces = (Piece(name, _differences, (name, some), one_thread=True) for name, some in schemes.items())
    probes = {}
    for piece, found in task.crew.run(pieces):
        differences = {scheme: change.to(device) for scheme, change in found.items()}
        exact = task.weight(piece.name).float().to(device)
        probes[piece.name] = LayerProbe(exact, schemes[piece.name], differences)
    return {name: probes[name] for name in schemes}


def _differences(place: Place, name: str, schemes: Sequence[Scheme]) -> "dict[str, Tensor]":
    stored = Task(place.source, tuple(schemes)).weight(name)
    exact = stored.float()
    return {scheme.name: kept_difference(rounded_weight(stored, scheme), exact) for scheme in schemes}


def _modules(network: Network, group: FusedGroup) -> dict[str, Any]:
    import torch

    found = {layer.name: network.transformer.get_submodule(layer.name) for layer in group.layers}
    for name, module in found.items():
        if not isinstance(module, torch.nn.Linear):
            raise InputError(
                f"{name} is a {type(module).__name__}, not a linear layer; measure it with --tier kl or weights."
            )
    return found


def _head(passed: _Pass, ends: Sequence[Batch]) -> None:
    """Draw labels from the predictions and start the gradients of their summed log-likelihood."""
    import torch

    task, network = passed.task, passed.network
    group = next(group for group in task.groups(None) if group.name == "head")
    name = group.layers[0].name
    probe = _probes(task, [group], network.device)[name]
    generator = torch.Generator(network.device).manual_seed(0)
    gradients = []
    with watched(_modules(network, group), {name: probe}):
        for number, end in enumerate(ends):
            passed.progress(f"head, window {number + 1} of {len(ends)}")
            hidden = end.hidden.detach().requires_grad_()
            logits = network.logits(end.with_hidden(hidden))[0].float()
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
            gradients.append(hidden.grad)
    passed.gradient = torch.cat([one for one in gradients if one is not None])
    passed.head = _sums(probe)
    _keep_gradient(passed, network.block_count)


def _sums(probe: LayerProbe) -> dict[str, "Tensor"]:
    """Return the projections [windows] and the factored estimate, behind each other, by scheme."""
    import torch

    return {
        scheme.name: torch.tensor([*probe.projections[scheme.name], probe.factored(scheme)], dtype=torch.float64)
        for scheme in probe.schemes
    }


def _keep_gradient(passed: _Pass, next_block: int) -> None:
    import torch

    head = {_HEAD + name: values for name, values in passed.head.items()}
    passed.state.keep_tensors({_GRADIENT: passed.gradient, _NEXT: torch.tensor(next_block), **head})


def _block(passed: _Pass, index: int) -> None:
    """Pass the gradients through a block, and keep what its groups lose."""
    import torch

    task, network = passed.task, passed.network
    passed.progress(f"backward, block {index + 1} of {network.block_count}")
    groups = task.groups(index)
    with network.block(index) as block:
        modules = {name: module for group in groups for name, module in _modules(network, group).items()}
        probes = _probes(task, groups, network.device)
        with watched(modules, probes):
            gradients = []
            for number, batch in enumerate(passed.batches):
                hidden = passed.entering[index][number : number + 1].float().requires_grad_()
                out = network.step(index, block, batch.with_hidden(hidden)).hidden
                out.backward(passed.gradient[number : number + 1])
                gradients.append(hidden.grad)
    passed.gradient = torch.cat([one for one in gradients if one is not None])
    passed.entering.pop()
    for group in groups:
        _keep(passed, group, [_sums(probes[layer.name]) for layer in group.layers])
    _keep_gradient(passed, index)


def _outside(passed: _Pass) -> None:
    """Keep what the head loses with the input embedding, whose rows are changed one token at a time."""
    import torch

    task = passed.task
    for group in task.groups(None):
        if group.name != "head":
            continue
        name, sums = task.model.embedding.name, {}
        stored, ids = task.weight(name), torch.cat([batch.ids for batch in passed.batches])
        gradient = passed.gradient.to("cpu")
        for scheme in task.runnable(group):
            change = (rounded_weight(stored, scheme) - stored.float())[ids]
            by_token = (gradient * change).sum(dim=-1, dtype=torch.float64)
            factored = by_token.square().mean()[None] / 2
            sums[scheme.name] = torch.cat([by_token.sum(dim=1), factored])
        _keep(passed, group, [passed.head, sums] if sums else [])


def _keep(passed: _Pass, group: FusedGroup, members: Sequence[Mapping[str, "Tensor"]]) -> None:
    """Keep the cells of a group: the factored estimates, all times how the projections compare to them.

    That ratio is a mean over schemes and windows, whose roundings are independent draws.
    """
    import torch

    tokens = passed.batches[0].ids.shape[1]
    sums = {scheme.name: sum(one[scheme.name] for one in members) for scheme in passed.task.runnable(group)}
    known = {name: values for name, values in sums.items() if float(values[-1]) > 0}
    ratios = [values[:-1].square() / (2 * tokens) / values[-1] for values in known.values()]
    by_window = torch.stack(ratios).mean(dim=0) if ratios else torch.ones(1)
    ratio = float(by_window.mean())
    spread = float(by_window.std(unbiased=False)) / max(math.sqrt(len(by_window)), 1.0)
    width = math.hypot(_HALF_WIDTH, _NORMAL_80 * spread / ratio if ratio > 0 else 0.0)
    passed.state.keep({_name(group, name): [float(values[-1]) * ratio, width] for name, values in sums.items()})


def _name(group: FusedGroup, scheme: str) -> str:
    return f"{group.label} {scheme}"


def _read(task: Task, state: State) -> dict[CellKey, Cell]:
    cells = {}
    for group in task.all_groups:
        for scheme in task.runnable(group):
            found = state.get(_name(group, scheme.name))
            if found is not None:
                cells[(group.key, scheme.name)] = Cell(*found)
    return cells
