"""Channel scales folded into the operations of a block: whatever is folded, the block computes what it did before."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codesign.model.layers import Role
from codesign.quantize.block_inputs import GroupInputs, LayerGroup, LoadedBlock, group_inputs
from codesign.quantize.fold import Fold

if TYPE_CHECKING:
    from torch import Tensor

# A wrong fold changes the output by as much as its factors differ, a right one by rounding in float32.
_SAME = 1e-4
_LINEAR_BEFORE: Mapping[Role, Role] = {"o": "v", "down": "up"}
_NORM_OFFSETS = (0.0, 1.0)  # Gemma's norms multiply by 1 + weight

Search = Callable[[Sequence["Tensor"], GroupInputs, LayerGroup], Fold]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Layers that share an input, and the name of the operation that gives it."""

    group: LayerGroup
    before: str


@dataclass(frozen=True, slots=True, eq=False)
class Folds:
    """What folding changed: the factors of columns by layer, and the names of all parameters with new values."""

    columns: Mapping[str, "Tensor"]
    parameters: frozenset[str]


NO_FOLDS = Folds({}, frozenset())


def fold_block(block: LoadedBlock, groups: Sequence[LayerGroup], search: Search, *, linear: bool) -> Folds:
    """Fold what the search finds into norms, with `linear` also into the layers before (v of o, up of down).

    Whether the block computes the same is tried on a batch; a pair for which it does not is left as it is.
    """
    pairs = [*_norm_pairs(block, groups), *(_linear_pairs(block, groups) if linear else ())]
    inputs = group_inputs(block, [pair.group for pair in pairs], with_hessian=linear) if pairs else []
    columns: dict[str, Tensor] = {}
    parameters: set[str] = set()
    for pair, given in zip(pairs, inputs, strict=True):
        weights = [block.weight(layer.name) for layer in pair.group.layers]
        factors = _fold_if_same(block, pair, search(weights, given, pair.group))
        if factors is not None:
            columns.update({layer.name: factors for layer in pair.group.layers})
            parameters |= {name for name, _ in block.layer(pair.before).named_parameters(prefix=pair.before)}
    return Folds(columns, frozenset(parameters))


def _linear_pairs(block: LoadedBlock, groups: Sequence[LayerGroup]) -> list[Pair]:
    """Return layers whose channels come from rows of a layer before; with grouped-query attention v has too few."""
    model_block = block.network.source.model.blocks[block.index]
    names = {layer.role: layer.name for layer in model_block.layers if block.has(layer.name)}
    pairs = []
    for group in groups:
        before = names.get(_LINEAR_BEFORE.get(group.layers[0].role, "router"))
        if before is not None and len(block.weight(before)) == group.layers[0].k:
            pairs.append(Pair(group, before))
    return pairs


def _norm_pairs(block: LoadedBlock, groups: Sequence[LayerGroup]) -> list[Pair]:
    """Return groups that take the very output of a norm that no other layer takes."""
    outputs, takers = _traced(block)
    pairs = []
    for group in groups:
        wanted = {layer.name for layer in group.layers}
        for name, output in outputs.items():
            if {taker for taker, given in takers.items() if given is output} == wanted:
                pairs.append(Pair(group, name))
    return pairs


def _traced(block: LoadedBlock) -> tuple[dict[str, "Tensor"], dict[str, "Tensor"]]:
    """Return the outputs of norms and the inputs of linear layers in a run over the first batch."""
    import torch

    outputs: dict[str, Tensor] = {}
    takers: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.inference_mode():
        for name, module in block.module.named_modules(prefix=block.prefix[:-1]):
            if isinstance(module, torch.nn.Linear):
                hook = module.register_forward_hook(_keeping(takers, name, of_input=True))
            elif getattr(getattr(module, "weight", None), "ndim", 0) == 1:
                hook = module.register_forward_hook(_keeping(outputs, name, of_input=False))
            else:
                continue
            stack.callback(hook.remove)
        block.run(block.batches[0])
    return outputs, takers


def _keeping(kept: dict[str, "Tensor"], name: str, *, of_input: bool) -> Any:
    def hook(_: Any, arguments: tuple["Tensor", ...], output: "Tensor") -> None:
        kept[name] = arguments[0] if of_input else output

    return hook


def _fold_if_same(block: LoadedBlock, pair: Pair, fold: Fold) -> "Tensor | None":
    """Fold a pair and return the factors of its columns; None, and nothing changed, where outputs would differ."""
    import torch

    batch = block.batches[0]
    with torch.inference_mode():
        exact = block.run(batch)
    is_norm = block.weight(pair.before).ndim == 1
    for offset in _NORM_OFFSETS if is_norm else (0.0,):
        factors, values = _folded(block, pair, fold, offset)
        kept = {name: block.value(name) for name in values}
        block.assign(values)
        with torch.inference_mode():
            difference = block.run(batch) - exact
        if float(difference.norm()) <= _SAME * float((exact - batch.hidden).norm()):
            return factors
        block.assign(kept)
    return None


def _folded(block: LoadedBlock, pair: Pair, fold: Fold, offset: float) -> tuple["Tensor", dict[str, "Tensor"]]:
    """Return the factors and the new values of the parameters of a pair.

    Gains of norms are rounded to the type that they are stored in, and the factors are those that this gives.
    """
    before = f"{pair.before}.weight"
    weight, factors = block.value(before), fold.factors
    if weight.ndim == 1:
        dtype = block.network.source.tensor(before).dtype
        stored = (fold.out_of_norm(weight + offset) - offset).to(dtype).float()
        factors = ((weight + offset) / (stored + offset)).where(stored + offset != 0, factors)
    else:
        stored = fold.out_of_rows(weight)
    values = {before: stored}
    bias = f"{pair.before}.bias"
    if getattr(block.layer(pair.before), "bias", None) is not None:
        values[bias] = block.value(bias) / factors
    for layer in pair.group.layers:
        values[f"{layer.name}.weight"] = block.weight(layer.name) * factors
    return factors, values
