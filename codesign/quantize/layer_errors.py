"""What a scheme does to every linear layer by itself: to its weights, and with a text to its inputs and outputs.

Each layer is fed the exact model's inputs, so that its error is its own. Weights are rounded to nearest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.model.layers import Layer, Role
from codesign.quantize.errors import ErrorMetrics, ErrorSum
from codesign.quantize.gguf import quantize_gguf
from codesign.quantize.round import DeadChannels, dead_channels, quantize_weight
from codesign.quantize.source import WeightSource
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str], None]

_TURNED = ("gpt2",)  # transformers' Conv1D stores [k, n]
_PIECE_VALUES = 1 << 22  # copies in double precision stay at 32 MiB


@dataclass(frozen=True, slots=True)
class InputErrors:
    """What a text shows of a layer: errors of its outputs and of its rounded inputs, channels out of the ordinary.

    `activations` is None where the scheme leaves inputs as they are. `dead_channels` were zero for every token.
    """

    token_count: int
    output: ErrorMetrics
    activations: ErrorMetrics | None
    outlier_channels: tuple[int, ...]
    largest_over_median: float | None
    dead_channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """A layer's errors in a scheme; without weight errors `problem` says why there are none."""

    layer: Layer
    weight: ErrorMetrics | None
    dead: DeadChannels
    problem: str = ""
    nonfinite: bool = False
    inputs: InputErrors | None = None

    @property
    def snr_db(self) -> float:
        """Return the signal-to-noise ratio that layers are ranked by: of outputs where known, else of weights."""
        if self.inputs is not None:
            return self.inputs.output.snr_db
        return math.nan if self.weight is None else self.weight.snr_db


@dataclass(frozen=True, slots=True)
class RoleErrors:
    """All layers of a role; a ratio is that of the mean share of noise, every layer counting the same."""

    role: Role
    layer_count: int
    weight_count: int
    weight_snr_db: float
    output_snr_db: float | None
    worst: LayerErrors

    @property
    def snr_db(self) -> float:
        """Return the ratio that roles are ranked by."""
        return self.weight_snr_db if self.output_snr_db is None else self.output_snr_db


def silent(_: str) -> None:
    """Tell nobody."""


def weight_errors(source: WeightSource, scheme: Scheme, progress: Progress = silent) -> tuple[LayerErrors, ...]:
    """Return the errors of all dense layers' weights; damaged weights and misfits are told, not raised."""
    return tuple(_weight_errors(source, layer, scheme, progress) for layer in source.model.layers)


def _weight_errors(source: WeightSource, layer: Layer, scheme: Scheme, progress: Progress) -> LayerErrors:
    progress(layer.name)
    try:
        w = weight_of(source, layer)
    except InputError as error:
        return LayerErrors(layer, None, DeadChannels((), ()), str(error))
    dead = dead_channels(w)
    try:
        rounded = rounded_weight(w, scheme)
    except InputError as error:
        return LayerErrors(layer, None, dead, str(error), nonfinite=not bool(w.isfinite().all()))
    return LayerErrors(layer, _errors_of(w, rounded), dead)


def weight_of(source: WeightSource, layer: Layer) -> "Tensor":
    """Return a layer's weights [n, k]; a tied head has those of the embedding."""
    name = layer.name + ".weight"
    if not source.has(name) and layer is source.model.head and source.model.tied_embedding:
        name = source.model.embedding.name + ".weight"
    if not source.has(name):
        raise InputError(f"The files have no tensor {name}, or none of its own.")
    w = source.tensor(name)
    if source.model.architecture in _TURNED and layer.block_index is not None:
        w = w.T
    if tuple(w.shape) != (layer.n, layer.k):
        shape = "x".join(str(size) for size in w.shape)
        raise InputError(f"{name} is {shape} and not {layer.n}x{layer.k}: this architecture stores it in another way.")
    return w


def rounded_weight(w: "Tensor", scheme: Scheme) -> "Tensor":
    """Return the float32 values that weights [n, k] rounded to nearest stand for."""
    rounded = quantize_gguf(w, scheme) if scheme.family == "gguf" else quantize_weight(w, scheme)
    return rounded.dequantize()


def _errors_of(w: "Tensor", rounded: "Tensor") -> ErrorMetrics:
    errors = ErrorSum()
    rows = max(_PIECE_VALUES // w.shape[1], 1)
    for exact, found in zip(w.split(rows), rounded.split(rows), strict=True):
        errors.add(exact, found)
    return errors.result()


def nonfinite_names(found: Sequence[LayerErrors]) -> tuple[str, ...]:
    """Return the layers whose weights have NaN or Inf."""
    return tuple(one.layer.name for one in found if one.nonfinite)


def worst_first(found: Sequence[LayerErrors]) -> tuple[LayerErrors, ...]:
    """Return the layers by what they lose: first those without figures, then the lowest ratio."""
    return tuple(sorted(found, key=lambda one: (one.weight is not None, one.snr_db if one.weight else 0.0)))


def errors_by_role(found: Sequence[LayerErrors]) -> tuple[RoleErrors, ...]:
    """Return the totals of every role, the worst first; layers without figures are left out."""
    roles: dict[Role, list[LayerErrors]] = {}
    for one in found:
        if one.weight is not None:
            roles.setdefault(one.layer.role, []).append(one)
    return tuple(sorted((_role_errors(role, layers) for role, layers in roles.items()), key=lambda one: one.snr_db))


def _role_errors(role: Role, layers: Sequence[LayerErrors]) -> RoleErrors:
    outputs = [one.inputs.output.snr_db for one in layers if one.inputs is not None]
    return RoleErrors(
        role=role,
        layer_count=len(layers),
        weight_count=sum(one.layer.weight_count for one in layers),
        weight_snr_db=_mean_ratio_db([one.weight.snr_db for one in layers if one.weight is not None]),
        output_snr_db=_mean_ratio_db(outputs) if outputs else None,
        worst=worst_first(layers)[0],
    )


def _mean_ratio_db(ratios_db: Sequence[float]) -> float:
    share = sum(10 ** (-ratio / 10) for ratio in ratios_db) / len(ratios_db)
    return -10 * math.log10(share) if share > 0 else math.inf
