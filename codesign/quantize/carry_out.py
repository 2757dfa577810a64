"""A model quantized block by block: what is rounded in one block is what the next one is calibrated with."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.model.layers import Layer
from codesign.quantize.block_folds import NO_FOLDS, Folds, fold_block
from codesign.quantize.block_inputs import GroupInputs, LayerGroup, LoadedBlock, group_inputs, head_inputs, layer_groups
from codesign.quantize.kv_cache import E4M3_MAX, watched_kv
from codesign.quantize.layer_report import PartReport
from codesign.quantize.methods import METHODS, Recipe, find_method
from codesign.quantize.network import Batch, Network, input_rounding
from codesign.quantize.pieces import Here, Piece, Place, Workers
from codesign.quantize.result import OUTSIDE, Part, QuantizedLayer, ResultFolder, ResultSource
from codesign.quantize.round_layers import Made, Stage, round_layers
from codesign.quantize.round_pieces import round_block, rounded_stage
from codesign.quantize.source import WeightSource
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_VALUES = ("v", "qkv")
_BATCH_TOKENS = 2048  # their activations stay in the caches of a CPU


def carry_out(
    network: Network,
    schemes: Mapping[str, Scheme],
    recipe: Recipe,
    windows: "Tensor | None",
    results: ResultFolder,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[PartReport]:
    """Quantize the named layers into `results` and yield what each part came to; parts that are there are kept.

    `windows` [count, length] are token ids of the calibration text. Layers that are not named stay as they are.
    """
    check(network.source, schemes, recipe, windows)
    work = _Work(network, schemes, recipe, results)
    if windows is None:
        yield from _without_text(work, progress)
        return
    walk = network.with_source(ResultSource(network.source, results))
    batches = _entering(walk, windows)
    for index in range(network.block_count):
        if not results.has(index):
            progress(walk.block_name(index))
            yield _quantize_block(work, index, batches)
        progress(f"{walk.block_name(index)}: its outputs")
        batches = _behind(walk, index, batches)
    if not results.has(OUTSIDE):
        progress("layers outside of blocks")
        yield _quantize_outside(work, batches)


def check(source: WeightSource, schemes: Mapping[str, Scheme], recipe: Recipe, windows: "Tensor | None") -> None:
    """Refuse, before any work, layers that the model has not, and schemes that the method or missing text forbids."""
    method = find_method(recipe.method)
    names = {layer.name for layer in (*source.model.layers, source.model.embedding)}
    for name, scheme in schemes.items():
        if name not in names:
            raise InputError(f"{source.model.name} has no layer {name}: the plan is of another model; plan again.")
        why = method.refusal(scheme) if scheme.quantized and scheme.family != "gguf" else None
        if why:
            raise InputError(f"{name}: {why}")
    static = next((scheme for scheme in schemes.values() if scheme.activations.static), None)
    if windows is None and (method.needs_text or static):
        what = f"{static} has activations with fixed scales and" if static else f"{recipe.method}"
        raise InputError(f"{what} needs calibration text: give --text FILE or --self-generated.")


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What is done to every part."""

    network: Network
    schemes: Mapping[str, Scheme]
    recipe: Recipe
    results: ResultFolder

    @property
    def source(self) -> WeightSource:
        """Return the weights as they were."""
        return self.network.source

    @property
    def workers(self) -> Workers:
        """Return who rounds."""
        return self.network.workers or Here(Place(self.source))

    @property
    def with_hessian(self) -> bool:
        """Return whether the method needs X^T X."""
        return METHODS[self.recipe.method].needs_hessian


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """The layers of a part, and its other tensors that are new."""

    block_index: int | None
    name: str
    made: Sequence[Made]
    tensors: Mapping[str, "Tensor"] = field(default_factory=dict)


def _without_text(work: _Work, progress: Callable[[str], None]) -> Iterator[PartReport]:
    """Round the parts that are not there yet, in any order: none needs another."""
    count = work.network.block_count
    todo = [index for index in (*range(count), OUTSIDE) if not work.results.has(index)]

    def pieces() -> Iterator[Piece]:
        for index in todo:
            name = "layers outside of blocks" if index is None else work.network.block_name(index)
            progress(name)
            yield Piece(name, round_block, (index, *_groups_and_recipe(work, index)), one_thread=True)

    for _, (index, made, elapsed_s) in work.workers.run(pieces()):
        name = "outside" if index is None else work.network.block_name(index)
        yield _keep(work, _Outcome(index, name, made), elapsed_s)


def _groups_and_recipe(work: _Work, index: int | None) -> tuple[tuple[LayerGroup, ...], Recipe]:
    """Return what a part without text is rounded with; what is outside of blocks is rounded to nearest then."""
    if index is not None:
        return layer_groups(work.source.model.blocks[index].layers, work.schemes, work.source), work.recipe
    found = [group for layer in _outside(work) for group in layer_groups([layer], work.schemes, work.source)]
    return tuple(found), replace(work.recipe, method="rtn")


def _outside(work: _Work) -> tuple[Layer, ...]:
    model = work.source.model
    return (model.embedding, *model.outside_layers, model.head)


def _entering(network: Network, windows: "Tensor") -> list[Batch]:
    import torch

    with torch.inference_mode():
        return [network.start(ids) for ids in windows.split(max(_BATCH_TOKENS // windows.shape[1], 1))]


def _behind(network: Network, index: int, batches: Sequence[Batch]) -> list[Batch]:
    """Return the text behind a finished block, read back from disk: a run that was stopped goes on the same way."""
    import torch

    with network.block(index) as module, torch.inference_mode():
        return [network.step(index, module, batch) for batch in batches]


def _quantize_block(work: _Work, index: int, batches: Sequence[Batch]) -> PartReport:
    """Fold, then round group by group: each group's inputs come from the groups before it, as they were rounded."""
    begun_s = time.perf_counter()
    groups = layer_groups(work.source.model.blocks[index].layers, work.schemes, work.source)
    name = work.network.block_name(index)
    if not groups:
        return _keep(work, _Outcome(index, name, ()), time.perf_counter() - begun_s)
    method = METHODS[work.recipe.method]
    with work.network.block(index) as module, ExitStack() as hooks:
        block = LoadedBlock(work.network, index, module, batches)
        folds = fold_block(block, groups, method.fold, linear=method.fold_linear) if method.fold else NO_FOLDS
        made: list[Made] = []
        for group in groups:
            (inputs,) = group_inputs(block, [group], with_hessian=work.with_hessian, stop=True)
            here = rounded_stage(work.source, group, work.recipe, _stage(block, group, inputs, folds), work.workers)
            for one in here:
                _put_in_place(block, one.layer, hooks)
            made += here
        new = _new_tensors(work, block, folds, made) | (_cache_scales(block) if work.recipe.kv_scales else {})
        return _keep(work, _Outcome(index, name, made, new), time.perf_counter() - begun_s)


def _cache_scales(block: LoadedBlock) -> dict[str, "Tensor"]:
    """Return scales of the block's keys and values in E4M3 so that nothing saturates, the block being rounded."""
    import torch

    with watched_kv(block.network.transformer) as seen, torch.inference_mode():
        for batch in block.batches:
            block.run(batch)
    layers = block.network.source.model.blocks[block.index].layers
    attention = next(layer.name.rpartition(".")[0] for layer in layers if layer.role in _VALUES)
    largest = {"k_scale": seen.keys, "v_scale": seen.values}
    return {f"{attention}.{name}": torch.tensor([value / E4M3_MAX]) for name, value in largest.items()}


def _stage(block: LoadedBlock, group: LayerGroup, inputs: GroupInputs, folds: Folds) -> Stage:
    names = [layer.name for layer in group.quantized]
    changed = [name for name in names if name in folds.columns or name + ".weight" in folds.parameters]
    columns = {name: folds.columns[name] for name in names if name in folds.columns}
    return Stage(inputs, {name: block.weight(name) for name in changed}, columns)


def _put_in_place(block: LoadedBlock, layer: QuantizedLayer, hooks: ExitStack) -> None:
    """Let the block run with the rounded weights and inputs of a layer."""
    block.assign({layer.name + ".weight": layer.weight.dequantize()})
    if layer.inputs is not None:
        hooks.callback(block.layer(layer.name).register_forward_pre_hook(input_rounding(layer.inputs)).remove)


def _new_tensors(work: _Work, block: LoadedBlock, folds: Folds, made: Sequence[Made]) -> dict[str, "Tensor"]:
    """Return the parameters that folding changed and that are not quantized, in the type that they are stored in."""
    left = folds.parameters - {one.layer.name + ".weight" for one in made}
    return {name: block.value(name).to(work.source.tensor(name).dtype) for name in sorted(left)}


def _quantize_outside(work: _Work, batches: Sequence[Batch]) -> PartReport:
    """Round the layers outside of blocks: a tied head as one of its own, or with the embedding, as it is named."""
    begun_s = time.perf_counter()
    model, made = work.source.model, []
    for layer in _outside(work):
        for group in layer_groups([layer], work.schemes, work.source):
            multiplied = layer == model.head or (layer == model.embedding and model.tied_embedding)
            inputs = None
            if multiplied:
                inputs = head_inputs(work.network, batches, with_hessian=work.with_hessian)
            recipe = work.recipe if inputs is not None else replace(work.recipe, method="rtn")
            made += round_layers(work.source, group, recipe, Stage(inputs))
    return _keep(work, _Outcome(OUTSIDE, "outside", made), time.perf_counter() - begun_s)


def _keep(work: _Work, outcome: _Outcome, elapsed_s: float) -> PartReport:
    layers = tuple(one.layer for one in outcome.made)
    work.results.write(Part(outcome.block_index, layers, outcome.tensors))
    reports = tuple(one.report for one in outcome.made)
    return PartReport(outcome.block_index, outcome.name, reports, elapsed_s)
