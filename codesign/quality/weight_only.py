"""Tier `weights`: how far rounding moves a layer's weights, spread by the prior's shape; no text, no forward pass.

    loss(group, scheme) = scale x share of the group x relative squared weight error of the group in the scheme

`scale` makes the sum of one scheme its published loss, or a measured one. Source of the law that loss goes with the
squared error: a loss at its minimum is flat to first order.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from codesign.model.groups import FusedGroup, GroupKey
from codesign.model.layers import Model
from codesign.quality.cells import Cell, CellKey, Progress, Task
from codesign.quality.estimate import LossEstimate
from codesign.quality.prior import model_prior
from codesign.quality.rounded import rounded_weight
from codesign.quality.shape import head_share, layer_shape
from codesign.quality.state import State
from codesign.quantize.activations import quantize_activations
from codesign.quantize.pieces import Piece, Place
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import ActivationFormat, Scheme

if TYPE_CHECKING:
    from torch import Tensor

# The scheme that is published for most models, and the most alike among them (docs/quality-prior.md).
_PUBLISHED_SCHEME, _PUBLISHED_METHOD = "W4A16-g128", "rtn"
# Between models one scheme is off by 1.6 at 80 %; that a group's share is assumed is as much again.
_HALF_WIDTH = math.log(2.6)
_SAMPLE_TOKENS = 256


def weight_cells(task: Task, state: State, progress: Progress) -> dict[CellKey, Cell]:
    """Return the cells of every group and scheme, scaled by the published loss of W4A16-g128."""
    published = parse_scheme(_PUBLISHED_SCHEME)

    def pieces() -> Iterator[Piece]:
        for group in task.all_groups:
            if state.get(group.label) is None:
                progress(f"{group.label}")
                yield Piece(group.label, _relative_errors, (group, (*task.runnable(group), published)))

    for piece, errors in task.crew.run(pieces()):
        state.keep({piece.name: errors})
    shares: Mapping[GroupKey, float] = {**layer_shape(task.model), (None, "head"): head_share(task.model)}
    reference = sum(
        shares[group.key] * state.get(group.label)[published.name]
        for group in task.all_groups
        if group.block_index is not None
    )
    scale = _published_loss_nats(task.model) / reference if reference > 0 else 0.0
    return {
        (group.key, scheme.name): Cell(scale * shares[group.key] * state.get(group.label)[scheme.name], _HALF_WIDTH)
        for group in task.all_groups
        for scheme in task.runnable(group)
    }


def _published_loss_nats(model: Model) -> float:
    loss = model_prior(model).loss(parse_scheme(_PUBLISHED_SCHEME), _PUBLISHED_METHOD)
    assert isinstance(loss, LossEstimate)
    return loss.loss_nats


def _relative_errors(place: Place, group: FusedGroup, schemes: tuple[Scheme, ...]) -> dict[str, float]:
    """Return squared errors over squared weights, those of normally distributed inputs added where they are rounded."""
    import torch

    task = Task(place.source, schemes)
    errors, total = dict.fromkeys((scheme.name for scheme in schemes), 0.0), 0.0
    for layer in group.layers:
        stored = task.weight(layer.name)
        exact = stored.float()
        total += float(exact.square().sum(dtype=torch.float64))
        for scheme in schemes:
            error = (rounded_weight(stored, scheme) - exact).square().sum(dtype=torch.float64)
            errors[scheme.name] += float(error)
    by_format = {scheme.activations: 0.0 for scheme in schemes}
    for format_ in by_format:
        by_format[format_] = _input_error(format_, group.k)
    return {
        scheme.name: (errors[scheme.name] / total if total > 0 else 0.0) + by_format[scheme.activations]
        for scheme in schemes
    }


def _input_error(format_: ActivationFormat, channels: int) -> float:
    """Return the relative squared error of rounded inputs without outliers: a lower bound, as no text is read."""
    if format_.granularity is None:
        return 0.0
    import torch

    sample: Tensor = torch.randn(_SAMPLE_TOKENS, channels, generator=torch.Generator().manual_seed(0))
    error = quantize_activations(sample, format_) - sample
    return float(error.square().sum() / sample.square().sum())
