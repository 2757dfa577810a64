"""What a layer's inputs look like, summed up batch by batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

OUTLIER_TIMES_MEDIAN = 20.0
_HESSIAN_BLOCK = 192  # columns; wide enough for a fast product, narrow enough to leave out nearly half of it


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """Statistics of `token_count` inputs with k channels: all [k], and the Hessian X^T X [k, k] unless left out."""

    token_count: int
    minimum: "Tensor"
    maximum: "Tensor"
    mean: "Tensor"
    mean_magnitude: "Tensor"
    hessian: "Tensor | None"

    @property
    def largest(self) -> "Tensor":
        """Return the largest magnitude of each channel."""
        import torch

        return torch.maximum(self.maximum, -self.minimum)

    @property
    def dead_channels(self) -> tuple[int, ...]:
        """Return the channels that were zero in every input."""
        return tuple((self.largest == 0).nonzero()[:, 0].tolist())

    @property
    def outlier_channels(self) -> tuple[int, ...]:
        """Return the channels whose largest magnitude is over 20 times the median one."""
        return tuple((self.largest > OUTLIER_TIMES_MEDIAN * self.largest.median()).nonzero()[:, 0].tolist())


class StatisticsSum:
    """Adds up batches of inputs [..., k]; the Hessian is summed in float32, the rest of each batch in float64.

    Of the Hessian the blocks on and above the diagonal are summed, and mirrored at the end.
    """

    def __init__(self, channels: int, *, with_hessian: bool = True) -> None:
        import torch

        self._count = 0
        self._minimum = torch.full((channels,), torch.inf)
        self._maximum = torch.full((channels,), -torch.inf)
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._magnitudes = torch.zeros(channels, dtype=torch.float64)
        self._hessian = torch.zeros(channels, channels) if with_hessian else None

    def add(self, x: "Tensor") -> None:
        """Add a batch; NaN and Inf are refused, naming the channels."""
        import torch

        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if rows.shape[1] != len(self._minimum):
            raise InputError(f"Inputs have {rows.shape[1]} channels, the layer takes {len(self._minimum)}.")
        if len(rows) == 0:
            return
        magnitudes = rows.abs().sum(dim=0)
        if not bool(magnitudes.isfinite().all()):
            _refuse_nonfinite(rows)
        self._count += len(rows)
        self._minimum = torch.minimum(self._minimum, rows.amin(dim=0))
        self._maximum = torch.maximum(self._maximum, rows.amax(dim=0))
        self._sum += rows.sum(dim=0)
        self._magnitudes += magnitudes
        if self._hessian is not None:
            _add_upper(self._hessian, rows)

    def result(self) -> InputStatistics:
        """Return the statistics of everything that was added."""
        if self._count == 0:
            raise InputError("No inputs reached the layer: the calibration text is empty or the layer is never used.")
        hessian = None if self._hessian is None else self._hessian.triu() + self._hessian.triu(1).T
        mean, magnitude = (self._sum / self._count).float(), (self._magnitudes / self._count).float()
        return InputStatistics(self._count, self._minimum, self._maximum, mean, magnitude, hessian)


def _add_upper(hessian: "Tensor", rows: "Tensor") -> None:
    """Add X^T X, of which the blocks below the diagonal are left out."""
    for first in range(0, len(hessian), _HESSIAN_BLOCK):
        part = rows[:, first : first + _HESSIAN_BLOCK]
        hessian[first : first + _HESSIAN_BLOCK, first:].addmm_(part.T, rows[:, first:])


def _refuse_nonfinite(rows: "Tensor") -> None:
    bad = (~rows.isfinite()).any(dim=0)
    if bool(bad.any()):
        channels = bad.nonzero()[:, 0].tolist()
        raise InputError(
            f"Inputs have NaN or infinite values in {len(channels)} of {rows.shape[1]} channels, the first is "
            f"{channels[0]}. Run the model in bfloat16 or float32: float16 overflows above 65504."
        )
