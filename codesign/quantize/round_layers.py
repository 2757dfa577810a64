"""The layers of a group rounded by a method, with what that came to."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.block_inputs import GroupInputs, LayerGroup
from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.layer_report import Compared, LayerReport, layer_report
from codesign.quantize.methods import Recipe, Rounded, Task, round_group
from codesign.quantize.result import QuantizedLayer
from codesign.quantize.round import check_finite
from codesign.quantize.source import WeightSource
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What is known of a group when it is rounded: nothing where there is no text.

    `folded` are the float32 weights of the layers that folding changed, `columns` the factors of their columns.
    """

    inputs: GroupInputs | None = None
    folded: Mapping[str, "Tensor"] = field(default_factory=dict)
    columns: Mapping[str, "Tensor"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A rounded layer and its report."""

    layer: QuantizedLayer
    report: LayerReport


def round_layers(source: WeightSource, group: LayerGroup, recipe: Recipe, stage: Stage) -> list[Made]:
    """Round the layers of a group, those of one scheme together."""
    made = []
    for scheme in dict.fromkeys(group.schemes.values()):
        layers = [layer for layer in group.layers if group.schemes.get(layer.name) == scheme]
        names = [layer.name for layer in layers]
        weights = [_weight(source, name, scheme, stage) for name in names]
        begun_s = time.perf_counter()
        task = Task(weights, [layer.role for layer in layers], scheme, stage.inputs, recipe)
        rounded = _round_named(task, names)
        round_s = (time.perf_counter() - begun_s) / len(layers)
        fixed = _fixed_range(scheme, stage.inputs)
        for name, weight, exact in zip(names, rounded, weights, strict=True):
            kept = QuantizedLayer(name, weight, fixed)
            compared = Compared(exact, stage.columns.get(name), stage.inputs, recipe.method == "rtn")
            made.append(Made(kept, layer_report(kept, compared, round_s)))
    return made


def _weight(source: WeightSource, name: str, scheme: Scheme, stage: Stage) -> "Tensor":
    """Return the weights to round, with folds, in the type that 16-bit scales get."""
    exact = source.tensor(_parameter(source, name))
    folded = stage.folded.get(name)
    if folded is None:
        return exact
    return folded if scheme.weights.scale_bits == 32 else folded.to(exact.dtype)


def _parameter(source: WeightSource, name: str) -> str:
    """Return the parameter that holds a layer; a tied head's is the embedding."""
    model = source.model
    tied = name == model.head.name and model.tied_embedding and not source.has(name + ".weight")
    return (model.embedding.name if tied else name) + ".weight"


def _round_named(task: Task, names: Sequence[str]) -> Sequence[Rounded]:
    """Round the weights; what is wrong with them is said with the name of the layer."""
    try:
        return round_group(task)
    except InputError as error:
        for name, w in zip(names, task.weights, strict=True):
            check_finite(w, f"{name}: the weight")
        raise InputError(f"{', '.join(names)}: {error}") from error


def _fixed_range(scheme: Scheme, inputs: GroupInputs | None) -> ActivationRange | None:
    """Return the range of all calibration inputs where activations are static."""
    if inputs is None or not scheme.activations.static:
        return None
    return ActivationRange(float(inputs.statistics.minimum.min()), float(inputs.statistics.maximum.max()))
