"""What quantizing a layer, a block and a model came to."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.quantize.activations import quantize_activations
from codesign.quantize.block_inputs import GroupInputs
from codesign.quantize.gguf import GgufWeight, quantize_gguf
from codesign.quantize.result import QuantizedLayer
from codesign.quantize.round import DeadChannels, QuantizedWeight, dead_channels, quantize_weight
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes

if TYPE_CHECKING:
    from torch import Tensor

_BITS_PER_BYTE = 8


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Squared errors as fractions of the squared outputs, or of the squared weights where no text was given.

    `nearest_error_fraction` is that of rounding to nearest, None where it was not worked out. `round_s` is the time
    that rounding took, of weights that were `source_bytes` long.
    """

    name: str
    scheme: str
    weight_count: int
    stored_bytes: int
    source_bytes: int
    error_fraction: float | None
    nearest_error_fraction: float | None
    dead: DeadChannels
    round_s: float


@dataclass(frozen=True, slots=True)
class PartReport:
    """A block, or what is outside of blocks (None), with what it took in all."""

    block_index: int | None
    name: str
    layers: tuple[LayerReport, ...]
    elapsed_s: float

    @property
    def error_fraction(self) -> float | None:
        """Return the mean error of the layers, by their weights."""
        return _mean((layer.error_fraction, layer.weight_count) for layer in self.layers)

    @property
    def nearest_error_fraction(self) -> float | None:
        """Return the mean error of rounding to nearest."""
        return _mean((layer.nearest_error_fraction, layer.weight_count) for layer in self.layers)


def _mean(pairs: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(error, weight) for error, weight in pairs if error is not None]
    total = sum(weight for _, weight in known)
    return sum(error * weight for error, weight in known) / total if total else None


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A layer's weights as they were to be rounded, `factors` [k] folded into their columns, and what was rounded."""

    exact: "Tensor"
    factors: "Tensor | None"
    inputs: GroupInputs | None
    by_nearest: bool


def layer_report(layer: QuantizedLayer, compared: Compared, round_s: float) -> LayerReport:
    """Return what rounding a layer came to, measured on the sample of its inputs where there is one."""
    n, k = layer.weight.shape
    exact = compared.exact
    error = nearest = None
    if compared.inputs is not None or not compared.by_nearest:
        error = _error(layer, layer.weight.dequantize(), exact.float(), compared.inputs)
        nearest = error if compared.by_nearest else _nearest_error(layer, compared)
    return LayerReport(
        name=layer.name,
        scheme=layer.scheme.name,
        weight_count=n * k,
        stored_bytes=weight_bytes(layer.scheme, n, k),
        source_bytes=exact.numel() * exact.element_size(),
        error_fraction=error,
        nearest_error_fraction=nearest,
        dead=dead_channels(exact),
        round_s=round_s,
    )


def _nearest_error(layer: QuantizedLayer, compared: Compared) -> float:
    """Return the error of rounding the weights to nearest without any folds."""
    inputs, exact = compared.inputs, compared.exact.float()
    if compared.factors is not None and inputs is not None:
        exact = exact / compared.factors
        inputs = GroupInputs(inputs.statistics, inputs.mean_square, inputs.sample * compared.factors)
    return _error(layer, _nearest(exact.to(compared.exact.dtype), layer.scheme).dequantize(), exact, inputs)


def _nearest(w: "Tensor", scheme: Scheme) -> QuantizedWeight | GgufWeight:
    return quantize_gguf(w, scheme) if scheme.family == "gguf" else quantize_weight(w, scheme)


def _error(layer: QuantizedLayer, rounded: "Tensor", exact: "Tensor", inputs: GroupInputs | None) -> float:
    if inputs is None:
        found, wanted = rounded, exact
    else:
        x = inputs.sample
        found = quantize_activations(x, layer.scheme.activations, layer.fixed) @ rounded.T
        wanted = x @ exact.T
    signal = float(wanted.square().sum())
    return float((found - wanted).square().sum()) / signal if signal > 0 else 0.0
