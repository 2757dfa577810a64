"""Weights for rotated inputs, which have no outliers: what makes 4-bit activations work.

Source: Ashkboos et al., QuaRot (arXiv 2404.00456). Here every layer turns its own inputs at run time, so that
nothing else in the model changes.
"""

from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.hadamard import rotation
from codesign.quantize.round import QuantizedWeight, quantize_weight
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


def rotated_weight(w: "Tensor", seed: int) -> "Tensor":
    """Return the weights [n, k] in float32 for inputs that the rotation of that seed has turned.

    In exact numbers outputs stay what they were. Layers with the same inputs take the same seed.
    """
    return rotation(w.shape[1], seed).apply(w)


def rotated_hessian(hessian: "Tensor", seed: int) -> "Tensor":
    """Return X^T X [k, k] of the turned inputs, for GPTQ."""
    turn = rotation(len(hessian), seed)
    return turn.apply(turn.apply(hessian).T.contiguous())


def rotated(w: "Tensor", scheme: Scheme, seed: int) -> QuantizedWeight:
    """Return the turned weights rounded to nearest; `QuantizedLayer(rotation_seed=seed)` turns the inputs."""
    if scheme.family == "gguf":
        raise InputError(f"{scheme}: a GGUF file cannot say that inputs are rotated. Use W4A4 or another scheme.")
    return quantize_weight(rotated_weight(w, seed), scheme)
