"""A transformer whose linear layers round: what is trained in it, and what comes out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from codesign.errors import InputError
from codesign.quantize.activations import as_weights
from codesign.quantize.calibrate import ActivationRange, HistogramSum, activation_range
from codesign.quantize.fake_linear import FakeQuantLinear
from codesign.quantize.gguf import GgufWeight
from codesign.quantize.lsq import initial_steps
from codesign.quantize.network import Network
from codesign.quantize.result import OUTSIDE, Part, QuantizedLayer, ResultFolder
from codesign.quantize.round import QuantizedWeight, quantize_group, quantize_weight
from codesign.quantize.scales import Scales, scale_dtype
from codesign.quantize.source import WeightSource
from codesign.quantize.tiles import from_tiles, in_tiles, over_tiles
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

Start = Literal["rtn", "lsq"] | ResultFolder
_WITHIN_STEP = 0.49  # of a step around its middle: nothing there rounds to another code


class Student:
    """A network with all of its weights. `begin` puts the rounding layers in place, `parts` gives what was trained."""

    def __init__(self, network: Network, transformer: Any, beginning: "_Beginning") -> None:
        self._network, self.transformer, self._beginning = network, transformer, beginning
        self.layers: dict[str, FakeQuantLinear] = {}
        self.trained: dict[str, Any] = {}

    def begin(self, ids: "Tensor") -> None:
        """Replace the layers; ranges of static activations that are not known come from these ids [b, t]."""
        self._own()
        starts = self._beginning.layers(self.transformer, ids)
        for name, start in starts.items():
            linear = _linear(self.transformer, name)
            layer = FakeQuantLinear(linear, start, learn_steps=self._beginning.method == "lsq")
            linear.forward = layer.forward
            self.layers[name] = layer
        self.trained = dict(self._named())
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    def _own(self) -> None:
        """Give what is trained memory of its own: loaded weights are pages of the file, which the teacher reads too.

        A head that rounds no longer has the weights of the embedding.
        """
        import torch

        model = self._network.source.model
        if model.tied_embedding and model.head.name in self._beginning.schemes:
            head = _linear(self.transformer, model.head.name)
            head.weight = torch.nn.Parameter(head.weight.detach(), requires_grad=False)
        for name, parameter in self.transformer.named_parameters():
            if parameter.ndim == 1 or name.removesuffix(".weight") in self._beginning.schemes:
                parameter.data = parameter.data.clone()

    def _named(self) -> Iterator[tuple[str, Any]]:
        """Yield what is trained: matrices of replaced layers, their scales, and every norm and bias."""
        for name, parameter in self.transformer.named_parameters():
            if parameter.ndim == 1 or name.removesuffix(".weight") in self.layers:
                yield name, parameter
        for layer in self.layers.values():
            yield from layer.learned()

    @property
    def matrices(self) -> list[Any]:
        """Return the weights of replaced layers."""
        return [layer.linear.weight for layer in self.layers.values()]

    @property
    def scales(self) -> list[Any]:
        """Return the scales that are trained."""
        return [parameter for layer in self.layers.values() for _, parameter in layer.learned()]

    @property
    def vectors(self) -> list[Any]:
        """Return norms and biases."""
        return [parameter for name, parameter in self.trained.items() if parameter.ndim == 1 and "::" not in name]

    def logits(self, ids: "Tensor") -> "Tensor":
        """Return the logits [b, t, vocabulary] with everything rounded as it will be stored."""
        found: Tensor = self.transformer(input_ids=ids, use_cache=False).logits
        return found

    def keep_positive(self) -> None:
        """Put scales back above zero."""
        for layer in self.layers.values():
            layer.keep_positive()

    def parts(self) -> Iterator[Part]:
        """Yield what was trained, block by block."""
        model = self._network.source.model
        blocks = {layer.name: layer.block_index for layer in model.layers}
        prefixes = {self._network.block_name(index) + ".": index for index in range(self._network.block_count)}
        vectors = {name: one for name, one in self.trained.items() if one.ndim == 1 and "::" not in name}
        owners = {
            name: next((index for prefix, index in prefixes.items() if name.startswith(prefix)), OUTSIDE)
            for name in vectors
        }
        for index in (OUTSIDE, *prefixes.values()):
            layers = tuple(layer.result() for name, layer in self.layers.items() if blocks[name] == index)
            tensors = {name: one.detach().cpu() for name, one in vectors.items() if owners[name] == index}
            yield Part(index, layers, tensors)

    def release(self) -> None:
        """Take the rounding layers out again."""
        for layer in self.layers.values():
            del layer.linear.forward


@contextmanager
def student_of(
    source: WeightSource, schemes: Mapping[str, Scheme], start: Start, method: str, device: str
) -> Iterator[Student]:
    """Give the network of a source whose layers will round as these schemes do."""
    network = Network(source, device)
    with network.whole() as transformer:
        student = Student(network, transformer, _Beginning(source, schemes, start, method))
        try:
            yield student
        finally:
            student.release()


@dataclass(frozen=True, slots=True, eq=False)
class _Beginning:
    """Where training begins: the source, a scheme for each layer, first scales, and how they go on."""

    source: WeightSource
    schemes: Mapping[str, Scheme]
    start: Start
    method: str

    def layers(self, transformer: Any, ids: "Tensor") -> dict[str, QuantizedLayer]:
        """Return the layers as they are first rounded; weights of earlier results are put into the transformer."""
        if isinstance(self.start, ResultFolder):
            found = self._of_results(self.start, transformer)
        else:
            found = {name: QuantizedLayer(name, weight) for name, weight in self._rounded().items()}
        static = {name: one for name, one in found.items() if _needs_range(one)}
        ranges = _ranges(transformer, static, ids) if static else {}
        return {name: replace(one, fixed=ranges.get(name, one.fixed)) for name, one in found.items()}

    def _rounded(self) -> dict[str, QuantizedWeight]:
        """Return the weights rounded with scales from the extremes, or with those that LSQ begins with."""
        tied = self.source.model.head.name if self.source.model.tied_embedding else ""
        found: dict[str, QuantizedWeight] = {}
        for names in self._sharing():
            scheme = self.schemes[names[0]]
            stored = [self.source.model.embedding.name if name == tied else name for name in names]
            weights = [self.source.tensor(name + ".weight") for name in stored]
            if len(names) > 1:
                found.update(zip(names, quantize_group(weights, scheme), strict=True))
            else:
                found[names[0]] = quantize_weight(weights[0], scheme, scales=self._first_scales(weights[0], scheme))
        return found

    def _first_scales(self, w: "Tensor", scheme: Scheme) -> Scales | None:
        """Return the scales that LSQ begins with, None for those of the extremes."""
        if self.start != "lsq":
            return None
        return Scales(initial_steps(w, scheme.weights).to(scale_dtype(scheme.weights, w)))

    def _sharing(self) -> list[list[str]]:
        """Return the layers, those of a fused group together where they have a scale of the tensor in common."""
        groups: dict[tuple[Any, ...], list[str]] = {}
        for layer in self.source.model.layers:
            if layer.name in self.schemes:
                scheme = self.schemes[layer.name]
                alone = layer.name if scheme.weights.tensor_scale_bits == 0 else layer.group
                groups.setdefault((layer.block_index, alone, scheme.name), []).append(layer.name)
        return list(groups.values())

    def _of_results(self, results: ResultFolder, transformer: Any) -> dict[str, QuantizedLayer]:
        parameters = dict(transformer.named_parameters())
        found: dict[str, QuantizedLayer] = {}
        for index in (OUTSIDE, *range(len(self.source.model.blocks))):
            if not results.has(index):
                continue
            part = results.read(index)
            for name, tensor in part.tensors.items():
                parameters[name].data = tensor.to(parameters[name].data, copy=True)
            for layer in part.layers:
                exact = parameters[layer.name + ".weight"].data
                exact.copy_(_first_values(layer, exact.cpu(), folded=bool(part.tensors)))
                found[layer.name] = layer
        wanted = {name: scheme.name for name, scheme in self.schemes.items()}
        if {name: layer.scheme.name for name, layer in found.items()} != wanted:
            raise InputError(
                f"{results.path}: these results have other layers or schemes than the plan; quantize with it first."
            )
        return found


def _first_values(layer: QuantizedLayer, exact: "Tensor", folded: bool) -> "Tensor":
    """Return values that round to the codes of a layer: of integers those nearest to the exact weights.

    At the middles of their steps weights would have the longest way to another code. Folded weights have no exact ones.
    """
    weight = layer.weight
    middles = weight.dequantize()
    if folded or isinstance(weight, GgufWeight) or weight.scales is None or weight.group_of is not None:
        return middles
    if not layer.scheme.weights.number.startswith("int"):
        return middles
    reach = over_tiles(weight.scales.effective() * _WITHIN_STEP)
    off = in_tiles(exact - middles, weight.tile)
    return middles + from_tiles(off.minimum(reach).maximum(-reach), *weight.shape)


def _linear(transformer: Any, name: str) -> Any:
    """Return a linear layer by its name."""
    import torch

    try:
        module = transformer.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"{name}: {type(transformer).__name__} has no such layer, so that it cannot round.") from error
    if not isinstance(module, torch.nn.Linear):
        raise InputError(f"{name} is a {type(module).__name__}; only linear layers are trained to round.")
    return module


def _needs_range(layer: QuantizedLayer) -> bool:
    """Return whether the scale of inputs, or that above their scales, is fixed beforehand and not known yet."""
    format_ = layer.scheme.activations
    if format_.granularity is None or layer.fixed is not None:
        return False
    return format_.static or as_weights(format_).tensor_scale_bits > 0


def _ranges(transformer: Any, layers: Mapping[str, QuantizedLayer], ids: "Tensor") -> dict[str, ActivationRange]:
    """Return the ranges with the least squared error of what enters these layers."""
    import torch

    sums = {name: HistogramSum() for name in layers}
    hooks = [
        _linear(transformer, name).register_forward_pre_hook(lambda _, given, one=one: one.add(given[0].cpu()))
        for name, one in sums.items()
    ]
    try:
        with torch.no_grad():
            transformer(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: activation_range(one.result(), "mse", int(layers[name].scheme.activations.bits))
        for name, one in sums.items()
    }
