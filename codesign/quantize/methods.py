"""The methods that weights are quantized with: what each needs, what it folds, and how it rounds a group of layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.errors import InputError, did_you_mean
from codesign.model.layers import Role
from codesign.quantize.awq import clippable, clipped, search_fold
from codesign.quantize.block_folds import Search
from codesign.quantize.block_inputs import GroupInputs, LayerGroup
from codesign.quantize.fold import Fold
from codesign.quantize.gguf import GgufWeight, quantize_gguf
from codesign.quantize.gptq import GptqOptions, gptq_group
from codesign.quantize.hqq import hqq
from codesign.quantize.hqq import refusal as hqq_refusal
from codesign.quantize.round import QuantizedWeight, quantize_group, quantize_weight
from codesign.quantize.smoothquant import search_smoothing
from codesign.schemes.scheme import PerGroup, Scheme

if TYPE_CHECKING:
    from torch import Tensor

Rounded = QuantizedWeight | GgufWeight
_UNCLIPPED: tuple[Role, ...] = ("q", "k", "qkv")  # AWQ, auto_clip.py: their outputs meet each other, not a sum


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is quantized, apart from which layer gets which scheme.

    With `kv_scales` calibration text also gives every block the scales of an FP8 cache of its keys and values.
    """

    method: str = "rtn"
    kv_scales: bool = False
    gptq: GptqOptions = field(default_factory=GptqOptions)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Layers that share an input, all to be rounded in one scheme."""

    weights: Sequence["Tensor"]
    roles: Sequence[Role]
    scheme: Scheme
    inputs: GroupInputs | None
    recipe: Recipe

    @property
    def given(self) -> GroupInputs:
        """Return the inputs, which the methods that ask for them have."""
        if self.inputs is None:
            raise InputError("This method needs calibration text: give --text FILE or --self-generated.")
        return self.inputs


def _nearest(task: Task) -> Sequence[Rounded]:
    """Return the weights rounded to nearest; those in a scheme with a scale of the whole tensor share it."""
    if task.scheme.weights.tensor_scale_bits and len(task.weights) > 1:
        return quantize_group(task.weights, task.scheme)
    return [quantize_weight(w, task.scheme) for w in task.weights]


def _gptq(task: Task) -> Sequence[Rounded]:
    hessian, weights = task.given.statistics.hessian, task.scheme.weights
    size = weights.granularity.size if weights.flattened and isinstance(weights.granularity, PerGroup) else 1
    if hessian is None or task.weights[0].shape[1] % size:
        return _nearest(task)
    return [result.weight for result in gptq_group(task.weights, hessian, task.scheme, task.recipe.gptq)]


def _clipped(task: Task) -> Sequence[Rounded]:
    if not clippable(task.scheme):
        return _nearest(task)
    statistics = task.given.statistics
    return [
        quantize_weight(w, task.scheme) if role in _UNCLIPPED else clipped(w, statistics, task.scheme)
        for w, role in zip(task.weights, task.roles, strict=True)
    ]


def _hqq(task: Task) -> Sequence[Rounded]:
    return [hqq(w, task.scheme).weight for w in task.weights]


def _gguf(task: Task) -> Sequence[Rounded]:
    importance = None if task.inputs is None else task.inputs.mean_square
    return [quantize_gguf(w, task.scheme, importance) for w in task.weights]


def _awq_fold(weights: Sequence["Tensor"], inputs: GroupInputs, group: LayerGroup) -> Fold:
    return search_fold(weights, inputs.statistics, _coarsest(group)).fold


def _smooth_fold(weights: Sequence["Tensor"], inputs: GroupInputs, group: LayerGroup) -> Fold:
    return search_smoothing(weights, inputs.sample, _coarsest(group), inputs.statistics.largest).fold


def _coarsest(group: LayerGroup) -> Scheme:
    return min(group.schemes.values(), key=lambda scheme: scheme.bits_per_weight)


def _any(_scheme: Scheme) -> str | None:
    return None


def _plain_values(scheme: Scheme) -> str | None:
    if scheme.family == "gguf":
        return f"{scheme} has a search of its own, which weighs errors by the inputs; use --method rtn with a text."
    return None


def _rounded_activations(scheme: Scheme) -> str | None:
    if scheme.weight_only:
        return f"SmoothQuant is for quantized activations, {scheme} keeps them in 16 bits; use W8A8, or gptq or awq."
    return None


@dataclass(frozen=True, slots=True)
class Method:
    """`fold` searches channel scales, into linear layers too with `fold_linear`; `refusal` says why not a scheme."""

    round: Callable[[Task], Sequence[Rounded]]
    refusal: Callable[[Scheme], str | None] = _any
    needs_text: bool = False
    needs_hessian: bool = False
    fold: Search | None = None
    fold_linear: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "rtn": Method(_nearest),
        "gptq": Method(_gptq, _plain_values, needs_text=True, needs_hessian=True),
        "awq": Method(_clipped, _plain_values, needs_text=True, needs_hessian=True, fold=_awq_fold, fold_linear=True),
        "smoothquant": Method(_nearest, _rounded_activations, needs_text=True, fold=_smooth_fold),
        "hqq": Method(_hqq, hqq_refusal),
    }
)


def find_method(name: str) -> Method:
    """Return the method of that name."""
    if name not in METHODS:
        raise InputError(
            f'Unknown method "{name[:40]}".{did_you_mean(name[:40], METHODS)} Known: {", ".join(METHODS)}.'
        )
    return METHODS[name]


def round_group(task: Task) -> Sequence[Rounded]:
    """Return the weights of a group as the method rounds them; blocks of GGUF have a search of their own."""
    return _gguf(task) if task.scheme.family == "gguf" else METHODS[task.recipe.method].round(task)
