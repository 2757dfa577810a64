"""Ranges of static activations from a histogram: min-max, percentile, entropy and least squared error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

_BINS = 4096
_PERCENTILE = 99.99
_CANDIDATES = 128


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts [bins] of magnitudes in equal bins from 0 to `limit`, with the smallest and the largest value."""

    counts: "Tensor"
    limit: float
    minimum: float
    maximum: float

    @property
    def bin_width(self) -> float:
        """Return the width of a bin."""
        return self.limit / len(self.counts)

    @property
    def largest(self) -> float:
        """Return the largest magnitude seen."""
        return max(self.maximum, -self.minimum)


class HistogramSum:
    """Adds up batches of activations; when one exceeds the range, the range doubles and pairs of bins are merged."""

    def __init__(self) -> None:
        import torch

        self._counts = torch.zeros(_BINS, dtype=torch.float64)
        self._limit = 0.0
        self._minimum, self._maximum = float("inf"), float("-inf")

    def add(self, x: "Tensor") -> None:
        """Add a batch of any shape; NaN and Inf are refused."""
        import torch

        values = x.detach().float().reshape(-1)
        if values.numel() == 0:
            return
        if not bool(values.isfinite().all()):
            raise InputError("Activations have NaN or infinite values; run the model in bfloat16 or float32.")
        low, high = (float(edge) for edge in torch.aminmax(values))
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)
        self._widen(max(high, -low))
        if self._limit > 0:
            self._counts += torch.histc(values.abs(), _BINS, 0, self._limit).double()

    def _widen(self, largest: float) -> None:
        self._limit = self._limit or largest
        while largest > self._limit:
            merged = self._counts.view(-1, 2).sum(dim=1)
            self._counts.zero_()
            self._counts[: _BINS // 2] = merged
            self._limit *= 2

    def result(self) -> Histogram:
        """Return the histogram of everything that was added."""
        if self._maximum < self._minimum:
            raise InputError("No activations were added; the calibration text is empty or the layer is never used.")
        if self._limit == 0:
            raise InputError("All activations are zero: a static scale cannot be chosen. Leave this layer in 16 bits.")
        return Histogram(self._counts.clone(), self._limit, self._minimum, self._maximum)


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """Values outside of [low, high] are clipped."""

    low: float
    high: float

    def symmetric_scale(self, bits: int) -> float:
        """Return the step of signed integers."""
        return max(self.high, -self.low) / ((1 << bits - 1) - 1)


def activation_range(histogram: Histogram, method: str, bits: int = 8) -> ActivationRange:
    """Return the range that a method chooses, cut symmetrically in magnitude and never wider than what was seen."""
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise InputError(f'Calibration "{method}" is not one of {known}.{did_you_mean(method, METHODS)}')
    limit = min(METHODS[method](histogram, bits), histogram.largest)
    return ActivationRange(max(histogram.minimum, -limit), min(histogram.maximum, limit))


def _min_max(histogram: Histogram, bits: int) -> float:
    return histogram.largest


def _percentile(histogram: Histogram, bits: int) -> float:
    """Return the magnitude that 99.99 % of the values do not exceed."""
    import torch

    reached = histogram.counts.cumsum(0) / histogram.counts.sum()
    index = int(torch.searchsorted(reached, torch.tensor(_PERCENTILE / 100, dtype=reached.dtype)))
    return (min(index, _BINS - 1) + 1) * histogram.bin_width


def _limits(bits: int) -> "list[int]":
    """Return the numbers of bins that are tried as the range, from one bin per level to all."""
    levels = 2 ** (bits - 1)
    return sorted({levels + round((_BINS - levels) * step / _CANDIDATES) for step in range(1, _CANDIDATES + 1)})


def _least_squares(histogram: Histogram, bits: int) -> float:
    """Return the range with the least expected squared error of signed integers, bins taken at their middles."""
    import torch

    middles = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * histogram.bin_width
    top = 2 ** (bits - 1) - 1

    def error(count: int) -> float:
        scale = count * histogram.bin_width / top
        return float((histogram.counts * ((middles / scale).round().clamp(max=top) * scale - middles).square()).sum())

    return min(_limits(bits), key=error) * histogram.bin_width


def _entropy(histogram: Histogram, bits: int) -> float:
    """Return the range whose quantized distribution diverges least from the clipped one.

    Source: Migacz, 8-bit inference with TensorRT (GTC 2017).
    """
    levels = 2 ** (bits - 1)
    return min(_limits(bits), key=lambda count: _divergence(histogram.counts, count, levels)) * histogram.bin_width


def _divergence(counts: "Tensor", count: int, levels: int) -> float:
    """Return KL(clipped || quantized) of the first bins; what is clipped falls into the last of them."""
    import torch

    inside = counts[:count]
    clipped = inside.clone()
    clipped[-1] += counts[count:].sum()
    level = torch.arange(count) * levels // count
    used = (inside > 0).double()
    totals, bins = (torch.zeros(levels, dtype=torch.float64).index_add_(0, level, part) for part in (inside, used))
    spread = (totals / bins.clamp(min=1))[level] * used
    present = clipped > 0
    p, q = clipped[present] / clipped.sum(), spread[present] / spread.sum().clamp(min=1e-300)
    return float((p * (p / q.clamp(min=1e-12)).log()).sum())


METHODS: Mapping[str, Callable[[Histogram, int], float]] = MappingProxyType(
    {"min-max": _min_max, "percentile": _percentile, "entropy": _entropy, "mse": _least_squares}
)
