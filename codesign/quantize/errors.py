"""How far rounded weights and the outputs of a layer are from the exact ones."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ErrorMetrics:
    """Differences of two tensors; `snr_db` is infinite for equal ones, `cosine` 1."""

    mse: float
    mae: float
    max: float
    snr_db: float
    cosine: float


def error_metrics(exact: "Tensor", rounded: "Tensor") -> ErrorMetrics:
    """Return the errors of `rounded` against `exact`, in double precision."""
    if exact.shape != rounded.shape:
        raise InputError(f"Tensors of {tuple(exact.shape)} and {tuple(rounded.shape)} values have no error.")
    true, found = exact.double().reshape(-1), rounded.double().reshape(-1)
    difference = found - true
    noise, signal = float(difference.square().sum()), float(true.square().sum())
    return ErrorMetrics(
        mse=noise / true.numel(),
        mae=float(difference.abs().mean()),
        max=float(difference.abs().max()),
        snr_db=_snr_db(signal, noise),
        cosine=_cosine(float(true @ found), signal, float(found.square().sum())),
    )


def output_errors(
    x: "Tensor", exact: "Tensor", rounded: "Tensor", *, x_rounded: "Tensor | None" = None
) -> ErrorMetrics:
    """Return the errors of the outputs x [m, k] times weights [n, k] transposed.

    `x_rounded` are the activations that the rounded weights meet, where those are quantized too.
    """
    inputs = (x if x_rounded is None else x_rounded).float()
    return error_metrics(x.float() @ exact.float().T, inputs @ rounded.float().T)


def hessian_error(difference: "Tensor", hessian: "Tensor") -> "Tensor":
    """Return for each row d of [n, k] the squared output error d H d, with H = X^T X of the inputs."""
    d = difference.to(hessian.dtype)
    return ((d @ hessian) * d).sum(dim=1)


def _snr_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _cosine(product: float, first: float, second: float) -> float:
    if first == 0 or second == 0:
        return 1.0 if first == second else 0.0
    return product / math.sqrt(first * second)
