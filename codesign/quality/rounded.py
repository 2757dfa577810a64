"""A model whose layers are rounded to nearest in their schemes when they are read, by the exporter's own code."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codesign.quantize.gguf import quantize_gguf
from codesign.quantize.hadamard import rotation
from codesign.quantize.rotated import rotated
from codesign.quantize.round import quantize_weight
from codesign.quantize.source import LayerInputs, WeightSource
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


def rounded_weight(w: "Tensor", scheme: Scheme) -> "Tensor":
    """Return the float32 values [n, k] that a scheme makes of a weight; 16-bit schemes leave it as it is."""
    if not scheme.quantized:
        return w.float()
    made = quantize_gguf(w, scheme) if scheme.family == "gguf" else quantize_weight(w, scheme)
    return made.dequantize()


class RoundedSource:
    """The weights of a source, each layer in `schemes` rounded; the input embedding takes the head's scheme.

    With a `rotation_seed` the layers' inputs are rotated before they are rounded, and the weights to match.
    """

    def __init__(self, base: WeightSource, schemes: Mapping[str, Scheme], *, rotation_seed: int | None = None) -> None:
        self._base, self._seed = base, rotation_seed
        self.model, self.warnings, self.kv = base.model, base.warnings, base.kv
        head = schemes.get(base.model.head.name)
        self._weights = {**schemes, **({base.model.embedding.name: head} if head else {})}
        self._schemes = dict(schemes)

    @property
    def config(self) -> Any:
        """Return the configuration as transformers keeps it."""
        return self._base.config

    def has(self, name: str) -> bool:
        """Return whether the base has the parameter."""
        return self._base.has(name)

    def tensor(self, name: str) -> "Tensor":
        """Return a parameter, rounded if it is the weight of a layer with a scheme."""
        values = self._base.tensor(name)
        layer = name.removesuffix(".weight")
        scheme = self._weights.get(layer) if name.endswith(".weight") else None
        if scheme is None:
            return values
        if self._seed is not None and layer in self._schemes and scheme.quantized:
            return rotated(values, scheme, self._seed).dequantize()
        return rounded_weight(values, scheme)

    def inputs(self, layer: str) -> LayerInputs | None:
        """Return how a layer's scheme rounds its inputs."""
        scheme = self._schemes.get(layer)
        turned = self._seed is not None and scheme is not None and scheme.quantized
        if scheme is None or (scheme.activations.granularity is None and not turned):
            return self._base.inputs(layer)
        k = next(one.k for one in (*self.model.layers, self.model.head) if one.name == layer)
        return LayerInputs(scheme.activations, rotation=rotation(k, self._seed or 0) if turned else None)

    def tokenizer(self) -> Any:
        """Return the tokenizer of the base."""
        return self._base.tokenizer()
