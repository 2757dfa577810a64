"""What a change of a layer's weights and inputs does to the predictions, summed up while gradients pass through.

The KL divergence of a small change is 1/2 E[(g . d)^2] for gradients g of ln p(label), labels drawn from the model's
own predictions: the Fisher information. Two estimates of it are kept:

- the projection: g . d per window, exact over positions, rows and columns, but with the noise of one draw per window;
- the factored one: 1/2 tr(diag(G) D H D^T), G = E[g^2] of the outputs, H = E[x x^T] of the inputs. It has little noise
  but takes positions and rows as independent. Source: K-FAC, Martens and Grosse, arXiv 1503.05671, section 3.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from codesign.quantize.activations import quantize_activations
from codesign.schemes.scheme import ActivationFormat, Scheme

if TYPE_CHECKING:
    from torch import Tensor

_SINGLE_PRECISION_MAX = 1 << 24  # differences of larger layers, that is of the head, are kept in 16 bits
_ROWS = 4096  # so many rows of a layer are copied to single precision at a time


@dataclass(eq=False)
class LayerProbe:
    """Sums of one linear layer: `differences` [n, k] by scheme name are rounded less exact weights."""

    weight: "Tensor"
    schemes: Sequence[Scheme]
    differences: Mapping[str, "Tensor"]
    projections: dict[str, list[float]] = field(default_factory=dict)
    _hessian: Any = None
    _gradient_squares: Any = 0.0
    _input_errors: dict[ActivationFormat, Any] = field(default_factory=dict)
    _tokens: int = 0

    def add(self, x: "Tensor", gradient: "Tensor") -> None:
        """Add a window: inputs [t, k], and gradients [t, n] of its summed log-likelihood by the layer's outputs."""
        by_weight = gradient.T @ x
        by_format = {
            format_: self._add_input_error(format_, quantize_activations(x, format_) - x, gradient)
            for format_ in dict.fromkeys(scheme.activations for scheme in self.schemes)
            if format_.granularity is not None
        }
        for scheme in self.schemes:
            self.projections.setdefault(scheme.name, []).append(self._projection(scheme, by_weight, by_format))
        if self._hessian is None:
            self._hessian = x.new_zeros(x.shape[1], x.shape[1])
        self._hessian.addmm_(x.T, x)
        self._gradient_squares = self._gradient_squares + gradient.square().sum(dim=0)
        self._tokens += len(x)

    def _add_input_error(self, format_: ActivationFormat, error: "Tensor", gradient: "Tensor") -> "Tensor":
        self._input_errors[format_] = self._input_errors.get(format_, 0.0) + error.square().sum(dim=0)
        return gradient.T @ error

    def _projection(self, scheme: Scheme, by_weight: "Tensor", by_format: Mapping[ActivationFormat, "Tensor"]) -> float:
        """Return g . d of a window: of changed weights, and of changed inputs through the changed weights."""
        difference = self.differences[scheme.name]
        inputs = by_format.get(scheme.activations)
        found = _dot(difference, by_weight if inputs is None else by_weight + inputs)
        return found if inputs is None else found + _dot(self.weight, inputs)

    def factored(self, scheme: Scheme) -> float:
        """Return the factored estimate in nats per token."""
        tokens, difference = self._tokens, self.differences[scheme.name]
        total = 0.0
        for first in range(0, len(difference), _ROWS):
            rows = slice(first, first + _ROWS)
            change, importance = difference[rows].float(), self._gradient_squares[rows] / tokens
            damage = ((change @ self._hessian) * change).sum(dim=1) / tokens
            errors = self._input_errors.get(scheme.activations)
            if errors is not None:
                damage = damage + (self.weight[rows].float() + change).square() @ (errors / tokens)
            total += float(importance @ damage) / 2
        return max(total, 0.0)


def _dot(left: "Tensor", right: "Tensor") -> float:
    """Return the sum of products, so many rows at a time that copies in single precision stay small."""
    import torch

    return sum(
        float(torch.dot(left[first : first + _ROWS].float().reshape(-1), part.reshape(-1)))
        for first, part in ((i, right[i : i + _ROWS]) for i in range(0, len(right), _ROWS))
    )


def kept_difference(rounded: "Tensor", exact: "Tensor") -> "Tensor":
    """Return how far the rounded weights are from the exact ones, in the precision that it is kept in."""
    import torch

    difference = rounded - exact
    return difference.to(torch.bfloat16) if difference.numel() > _SINGLE_PRECISION_MAX else difference


@contextmanager
def watched(modules: Mapping[str, Any], probes: Mapping[str, LayerProbe]) -> Iterator[None]:
    """Give every probe the inputs of its module on the way forward and the gradients on the way back."""
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(_hook(probes[name])).remove)
        yield


def _hook(probe: LayerProbe) -> Any:
    def forward(_: Any, arguments: tuple["Tensor", ...], out: "Tensor") -> None:
        x = arguments[0].detach()
        rows = x.reshape(-1, x.shape[-1])
        out.register_hook(lambda gradient: probe.add(rows, gradient.reshape(-1, gradient.shape[-1])))

    return forward
