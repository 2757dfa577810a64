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


class ErrorSum:
    """Adds up differences of tensors piece by piece, in double precision."""

    def __init__(self) -> None:
        self._count, self._noise, self._signal, self._found, self._product = 0, 0.0, 0.0, 0.0, 0.0
        self._magnitude, self._largest = 0.0, 0.0

    def add(self, exact: "Tensor", rounded: "Tensor") -> None:
        """Add a piece."""
        if exact.shape != rounded.shape:
            raise InputError(f"Tensors of {tuple(exact.shape)} and {tuple(rounded.shape)} values have no error.")
        true, found = exact.double().reshape(-1), rounded.double().reshape(-1)
        difference = found - true
        self._count += true.numel()
        self._noise += float(difference @ difference)
        self._signal += float(true @ true)
        self._found += float(found @ found)
        self._product += float(true @ found)
        self._magnitude += float(difference.abs_().sum())
        self._largest = max(self._largest, float(difference.max()))

    def result(self) -> ErrorMetrics:
        """Return the errors of everything that was added."""
        if self._count == 0:
            raise InputError("Nothing was added, which has no error.")
        return ErrorMetrics(
            mse=self._noise / self._count,
            mae=self._magnitude / self._count,
            max=self._largest,
            snr_db=_snr_db(self._signal, self._noise),
            cosine=_cosine(self._product, self._signal, self._found),
        )


def error_metrics(exact: "Tensor", rounded: "Tensor") -> ErrorMetrics:
    """Return the errors of `rounded` against `exact`, in double precision."""
    errors = ErrorSum()
    errors.add(exact, rounded)
    return errors.result()


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
