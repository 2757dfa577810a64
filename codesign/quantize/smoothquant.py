"""SmoothQuant: part of the activations' range is moved into the weights, as much as the output error says.

Source: Xiao et al., SmoothQuant, equation 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.activations import quantize_activations
from codesign.quantize.fold import Fold, usable_factors
from codesign.quantize.round import check_finite, quantize_weight
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_STRENGTHS = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True, slots=True, eq=False)
class SmoothResult:
    """The scales to fold, the strength that gave them (None: none helped), and the output errors with and without."""

    fold: Fold
    strength: float | None
    error: float
    plain_error: float


def search_smoothing(weights: Sequence["Tensor"], x: "Tensor", scheme: Scheme, largest: "Tensor") -> SmoothResult:
    """Return the migration strength with the least output error of layers that share the sample of inputs x [m, k].

    `largest` [k] are the largest magnitudes over all calibration inputs.
    """
    import torch

    if scheme.weight_only or not scheme.quantized:
        raise InputError(f"SmoothQuant is for quantized activations, {scheme} keeps 16 bits. Use W8A8 or W4A8.")
    for w in weights:
        check_finite(w)
    none = Fold(torch.ones_like(largest, dtype=torch.float32))
    plain = _error(weights, x, scheme, none)
    best = SmoothResult(none, None, plain, plain)
    for strength in _STRENGTHS:
        fold = smoothing(weights, largest, strength)
        error = _error(weights, x, scheme, fold)
        if error < best.error:
            best = SmoothResult(fold, strength, error, plain)
    return best


def smoothing(weights: Sequence["Tensor"], largest: "Tensor", strength: float) -> Fold:
    """Return the channel scales max|x|^strength / max|w|^(1 - strength)."""
    import torch

    column = torch.stack([w.float().abs().amax(dim=0) for w in weights]).amax(dim=0)
    return Fold(usable_factors(largest.float().pow(strength) / column.pow(1 - strength)))


def _error(weights: Sequence["Tensor"], x: "Tensor", scheme: Scheme, fold: Fold) -> float:
    inputs = quantize_activations(x.float() / fold.factors, scheme.activations)
    total = 0.0
    for w in weights:
        rounded = quantize_weight(fold.into_weights(w), scheme).dequantize()
        total += float((inputs @ rounded.T - x.float() @ w.float().T).square().sum())
    return total
