"""A linear layer that rounds its weights, and its inputs where the scheme does, in every forward pass."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.quantize.activations import as_weights, quantize_activations
from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.lsq import Rounding, fake_quantize, gradient_scale, pass_through
from codesign.quantize.result import QuantizedLayer
from codesign.quantize.round import QuantizedWeight, quantize_weight
from codesign.quantize.scales import Scales
from codesign.quantize.tiles import Tile, stored_matrix
from codesign.schemes.scheme import PerTensor, Scheme

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST_STEP = 2.0**-24  # the smallest fp16: a learned step stays positive


def refusal(scheme: Scheme, learn_steps: bool) -> str | None:
    """Return why layers in a scheme are not trained, or not with steps that are learned."""
    weights = scheme.weights
    if not scheme.quantized or scheme.family == "gguf":
        return f"{scheme} does not round value by value with scales; train integers such as W4A16-g32."
    nested = weights.flattened and weights.super_group_size is not None
    if learn_steps and (weights.scale_bits < 16 or weights.tensor_scale_bits > 0 or nested):
        return (
            f"the scales of {scheme} are stored in few bits or under another scale, which LSQ does not learn; "
            "use --method ste, or integers such as W4A16-g64."
        )
    return None


class FakeQuantLinear:
    """Stands in for the forward pass of a torch Linear, whose float32 weights are what is trained.

    With `learn_steps` the scales of weights and of static activations are trained too; else they stay those of `start`.
    """

    def __init__(self, linear: Any, start: QuantizedLayer, learn_steps: bool) -> None:
        import torch

        weight = start.weight
        assert isinstance(weight, QuantizedWeight)
        assert weight.scales is not None
        if weight.group_of is not None or start.rotation_seed is not None:
            raise InputError(f"{start.name}: results with reordered groups or rotated inputs are not trained further.")
        self.linear, self._start, self._scales = linear, start, weight.scales
        self.scheme, self._learned = start.scheme, learn_steps
        device = linear.weight.device
        steps = weight.scales.effective().to(device)
        self.steps = torch.nn.Parameter(steps, requires_grad=learn_steps)
        points = weight.scales.zero_points
        self._points = None if points is None else points.to(device)
        limit = None
        if start.fixed is not None and isinstance(self.scheme.activations.granularity, PerTensor):
            limit = torch.tensor([[max(start.fixed.high, -start.fixed.low)]])
        self.limit = None if limit is None else torch.nn.Parameter(limit.to(device), requires_grad=learn_steps)
        self._rounding = self._weight_rounding(weight)

    def _weight_rounding(self, weight: QuantizedWeight) -> Rounding:
        import torch

        format_, tile = self.scheme.weights, weight.tile
        dtype = weight.scales.stored.dtype if self._learned and weight.scales is not None else torch.float32
        n, k = weight.shape
        return Rounding(format_, tile, dtype, gradient_scale(min(tile.rows, n) * min(tile.columns, k), format_))

    def learned(self) -> Iterator[tuple[str, Any]]:
        """Yield the names and parameters of scales that are trained."""
        for name, parameter in (("steps", self.steps), ("limit", self.limit)):
            if parameter is not None and parameter.requires_grad:
                yield f"{self._start.name}::{name}", parameter

    def weight(self) -> "Tensor":
        """Return the weights [n, k] as they are stored."""
        latent = self.linear.weight
        rounded = fake_quantize(stored_matrix(latent, self.scheme.weights), self.steps, self._points, self._rounding)
        return rounded.reshape(-1)[: latent.numel()].reshape(latent.shape)

    def forward(self, x: "Tensor") -> "Tensor":
        """Return what the layer gives once it is quantized."""
        import torch

        rows = x.reshape(-1, x.shape[-1])
        rounded = self._inputs(rows)
        out: Tensor = torch.nn.functional.linear(rounded.reshape(x.shape), self.weight(), self.linear.bias)
        return out

    def _inputs(self, rows: "Tensor") -> "Tensor":
        """Return inputs [m, k] as the scheme holds them; a static range for all of them can be learned."""
        import torch

        format_ = self.scheme.activations
        if format_.granularity is None:
            return rows
        if self.limit is None:
            return pass_through(rows, quantize_activations(rows.detach(), format_, self._start.fixed))
        weights, (m, k) = as_weights(format_), rows.shape
        rounding = Rounding(weights, Tile(m, k), torch.float32, gradient_scale(k, weights))
        return fake_quantize(rows, self.limit / rounding.codec.top, None, rounding)

    def keep_positive(self) -> None:
        """Put learned scales back above zero, which a large update may pass."""
        for _, parameter in self.learned():
            parameter.data.clamp_(min=_SMALLEST_STEP)

    def result(self) -> QuantizedLayer:
        """Return the layer as the last forward pass with these weights rounded it."""
        scales = self._scales
        if self._learned:
            scales = Scales(self.steps.detach().to(scales.stored.dtype).cpu(), scales.zero_points)
        latent = self.linear.weight.detach().cpu()
        fixed = self._start.fixed
        if self.limit is not None:
            limit = float(self.limit.detach())
            fixed = ActivationRange(-limit, limit)
        return replace(self._start, weight=quantize_weight(latent, self.scheme, scales=scales), fixed=fixed)
