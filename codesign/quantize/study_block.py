"""A block of a network whose layers are exchanged for calibrated ones, variant by variant."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codesign.quantize.gptq import gptq_group
from codesign.quantize.network import Batch, Network, input_rounding
from codesign.quantize.ranges import (
    InputsSeen,
    InputsSum,
    activation_ranges,
    layer_module,
    shared_inputs,
    watching,
)
from codesign.quantize.round import quantize_weight
from codesign.quantize.source import LayerInputs
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Mapping[str, Tensor]

GPTQ = "gptq"
UNCALIBRATED = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """A scheme calibrated by a method with so many windows, with none where it is not calibrated."""

    scheme: Scheme
    method: str
    sample_count: int


@dataclass(frozen=True, slots=True, eq=False)
class VariantLayers:
    """What a variant makes of the layers of a block: rounded weights, and what is done to inputs, by name."""

    weights: "Weights"
    inputs: Mapping[str, LayerInputs]


@dataclass(frozen=True, slots=True, eq=False)
class StudyBlock:
    """A block with its exact weights."""

    network: Network
    index: int
    module: Any

    def run(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches behind the block."""
        return [self.network.step(self.index, self.module, batch) for batch in batches]

    def calibrated(
        self, variants: Sequence[Variant], calibrating: list[list[Batch]]
    ) -> Iterator[tuple[Variant, VariantLayers]]:
        """Yield what each variant makes of the layers; the calibration text moves behind the exact block."""
        exact = {name: self._layer(name).weight for names, _ in self._shared for name in names}
        plain = {one.scheme for one in variants if one.method != GPTQ}
        nearest = {scheme: _nearest(exact, scheme) for scheme in plain}
        with_hessian = any(one.method == GPTQ for one in variants)
        for count, seen in self._snapshots(calibrating, with_hessian=with_hessian):
            for variant in variants:
                if variant.sample_count != count:
                    continue
                compensated = _compensated(exact, seen, variant.scheme) if variant.method == GPTQ else None
                weights = compensated or nearest[variant.scheme]
                yield variant, VariantLayers(weights, _inputs(variant, seen, tuple(exact)))

    @contextmanager
    def with_layers(self, layers: VariantLayers) -> Iterator[None]:
        """Put a variant's layers in the place of the exact ones."""
        import torch

        with ExitStack() as stack:
            for name, values in layers.weights.items():
                module = self._layer(name)
                stack.callback(module._parameters.__setitem__, "weight", module.weight)
                module._parameters["weight"] = torch.nn.Parameter(values, requires_grad=False)
                if name in layers.inputs:
                    stack.callback(module.register_forward_pre_hook(input_rounding(layers.inputs[name])).remove)
            yield

    @property
    def _shared(self) -> list[tuple[tuple[str, ...], int]]:
        return shared_inputs(self.network, self.index)

    def _layer(self, name: str) -> Any:
        return layer_module(self.network, self.index, self.module, name)

    def _snapshots(
        self, calibrating: list[list[Batch]], *, with_hessian: bool
    ) -> Iterator[tuple[int, tuple[InputsSeen, ...]]]:
        """Yield how many windows were seen and what reached the layers: nothing, then after each part of the text."""
        count, sums = 0, [InputsSum(*shared, with_hessian=with_hessian) for shared in self._shared]
        yield count, ()
        for place, batches in enumerate(calibrating):
            with watching(self.network, self.index, self.module, sums):
                calibrating[place] = self.run(batches)
            count += sum(len(batch.ids) for batch in batches)
            yield count, tuple(one.result() for one in sums)


def _nearest(exact: "Weights", scheme: Scheme) -> "Weights":
    return {name: quantize_weight(w, scheme).dequantize() for name, w in exact.items()}


def _compensated(exact: "Weights", seen: Sequence[InputsSeen], scheme: Scheme) -> "Weights":
    """Return the weights as GPTQ rounds them."""
    found = {}
    for inputs in seen:
        assert inputs.hessian is not None
        results = gptq_group([exact[name] for name in inputs.layers], inputs.hessian, scheme)
        found.update({name: one.weight.dequantize() for name, one in zip(inputs.layers, results, strict=True)})
    return found


def _inputs(variant: Variant, seen: tuple[InputsSeen, ...], names: Sequence[str]) -> Mapping[str, LayerInputs]:
    """Return what the variant does to inputs; uncalibrated ranges are those of what is rounded."""
    activations = variant.scheme.activations
    if activations.granularity is None:
        return {}
    if variant.method == UNCALIBRATED:
        return dict.fromkeys(names, LayerInputs(activations))
    ranges = activation_ranges(seen, variant.method, int(activations.bits))
    return {name: LayerInputs(activations, fixed) for name, fixed in ranges.items()}
