"""Rounding cut into pieces that do not need each other: whole blocks without text, the layers of a group with it."""

import time
from collections.abc import Sequence
from dataclasses import replace

from codesign.quantize.block_inputs import GroupInputs, LayerGroup
from codesign.quantize.methods import Recipe
from codesign.quantize.pieces import Piece, Place, Workers
from codesign.quantize.round_layers import Made, Stage, round_layers
from codesign.quantize.source import WeightSource


def round_block(
    place: Place, index: int | None, groups: Sequence[LayerGroup], recipe: Recipe
) -> tuple[int | None, list[Made], float]:
    """Return the part's index, its layers rounded without text, and the seconds that took."""
    begun_s = time.perf_counter()
    made = [one for group in groups for one in round_layers(place.source, group, recipe, Stage())]
    return index, made, time.perf_counter() - begun_s


def rounded_stage(
    source: WeightSource, group: LayerGroup, recipe: Recipe, stage: Stage, workers: Workers
) -> list[Made]:
    """Return the layers of a group rounded, by several workers where there are some."""
    parts = _apart(group) if workers.slots > 1 else [group]
    if len(parts) == 1:
        return round_layers(source, group, recipe, stage)
    inputs = workers.share(stage.inputs)
    pieces = [Piece(_name(part), _round_part, (part, recipe, inputs, _of(part, stage))) for part in parts]
    found = {piece.name: made for piece, made in workers.run(pieces)}
    return [one for piece in pieces for one in found[piece.name]]


def _apart(group: LayerGroup) -> list[LayerGroup]:
    """Return the layers one by one, those that share a scale together, in the order in which a group is rounded."""
    parts = []
    for scheme in dict.fromkeys(group.schemes.values()):
        layers = [layer for layer in group.quantized if group.schemes[layer.name] == scheme]
        for some in [layers] if scheme.weights.tensor_scale_bits else [[layer] for layer in layers]:
            parts.append(LayerGroup(tuple(some), {layer.name: scheme for layer in some}))
    return parts


def _name(part: LayerGroup) -> str:
    return ", ".join(layer.name for layer in part.layers)


def _of(part: LayerGroup, stage: Stage) -> Stage:
    """Return what is known of some layers, but for the inputs, which all share."""
    folded, columns = (
        {layer.name: values[layer.name] for layer in part.layers if layer.name in values}
        for values in (stage.folded, stage.columns)
    )
    return Stage(None, folded, columns)


def _round_part(place: Place, part: LayerGroup, recipe: Recipe, inputs: GroupInputs, stage: Stage) -> list[Made]:
    return round_layers(place.source, part, recipe, replace(stage, inputs=inputs))
