"""How far a changed network's predictions are from the exact ones: KL divergence per token, window by window."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.network import Batch, Network
from codesign.quantize.round import check_finite
from codesign.quantize.source import WeightSource

if TYPE_CHECKING:
    from torch import Tensor

_POSITIONS = 256  # so many rows of logits at a time


@dataclass(frozen=True, slots=True)
class Divergence:
    """Mean KL in nats per token, and the standard error of that mean over windows (infinite for one window)."""

    kl_nats: float
    standard_error_nats: float


def mean_divergence(by_window: Sequence[float]) -> Divergence:
    """Return the mean and its standard error."""
    count = len(by_window)
    mean = math.fsum(by_window) / count
    if count == 1:
        return Divergence(mean, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in by_window) / (count - 1)
    return Divergence(mean, math.sqrt(variance / count))


@contextmanager
def reading(network: Network, source: WeightSource) -> Iterator[None]:
    """Load blocks from another source of the same model; embedding, last norm and head stay as they are."""
    before = network.source
    network.source = source
    try:
        yield
    finally:
        network.source = before


def started(network: Network, windows: "Tensor") -> list[Batch]:
    """Return the windows [count, length] as they enter the first block, each a batch of its own."""
    import torch

    with torch.no_grad():
        return [network.start(window[None]) for window in windows]


def stepped(network: Network, index: int, batches: Iterable[Batch]) -> list[Batch]:
    """Return batches behind a block, whose weights are loaded once."""
    import torch

    with torch.no_grad(), network.block(index) as block:
        after = [network.step(index, block, batch) for batch in batches]
    if not all(bool(batch.hidden.isfinite().all()) for batch in after):
        raise _nonfinite(network, index)
    return after


def _nonfinite(network: Network, index: int) -> InputError:
    """Return what to say of a block that gives NaN or Inf; a weight that holds some is named by the error raised."""
    source = network.source
    for layer in source.model.blocks[index].layers:
        check_finite(source.tensor(layer.name + ".weight"), f"{layer.name}.weight")
    return InputError(
        f"Block {index} of {source.model.name} gives NaN or infinite values though its matrices have none: "
        "a norm is damaged, or the values exceed what float32 holds. Check the checkpoint."
    )


def run_blocks(network: Network, windows: "Tensor", progress: Callable[[str], None]) -> list[Batch]:
    """Return the windows behind the last block."""
    batches = started(network, windows)
    for index in range(network.block_count):
        progress(f"block {index + 1} of {network.block_count}")
        batches = stepped(network, index, batches)
    return batches


def divergences(exact: Network, exact_ends: Sequence[Batch], other: Network, ends: Sequence[Batch]) -> list[float]:
    """Return KL(exact || other) of each window, mean over its tokens, from the states behind the last block."""
    return [
        _window_divergence(exact, exact_end, other, end) for exact_end, end in zip(exact_ends, ends, strict=True)
    ]  # fmt: skip


def _window_divergence(exact: Network, exact_end: Batch, other: Network, end: Batch) -> float:
    import torch

    length, total = int(exact_end.ids.shape[1]), 0.0
    with torch.no_grad():
        for first in range(0, length, _POSITIONS):
            true, found = (
                network.logits(_cut(batch, first)).float().log_softmax(-1)
                for network, batch in ((exact, exact_end), (other, end))
            )
            total += float((true.exp() * true.sub(found)).sum(dtype=torch.float64))
    if not math.isfinite(total):
        raise InputError("Predictions have NaN or infinite values: the head or the last norm is damaged.")
    return total / int(exact_end.ids.numel())


def _cut(batch: Batch, first: int) -> Batch:
    """Return some positions; behind the last block they do not depend on each other."""
    positions = slice(first, first + _POSITIONS)
    return replace(batch, ids=batch.ids[:, positions], hidden=batch.hidden[:, positions])
