"""What a set of times says: the median with its confidence interval, and how the rest lies about it.

Medians, because a few slow samples hardly move them; no sample is ever dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from codesign.errors import MeasurementError

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964  # 97.5 % of the standard normal distribution
EXACT_COUNT = 1000  # 2**-1000 is still a full-precision float
MILD_FENCE, SEVERE_FENCE = 1.5, 3.0  # in interquartile ranges beyond the quartiles; Tukey 1977


@dataclass(frozen=True, slots=True)
class Percentile:
    """A high percentile, or None and why the samples do not carry it."""

    value_s: float | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """The samples of one row in a few numbers.

    The interval holds the true median with `ci_confidence_fraction`, at least 95 % from 6 samples on. `mad_s` is the
    plain median of absolute deviations. Outliers are counted beyond Tukey's fences, mild ones without the severe; a
    slow first sample is flagged by `slow_first` and is in no count.
    """

    sample_count: int
    median_s: float
    ci_low_s: float
    ci_high_s: float
    ci_confidence_fraction: float
    mad_s: float
    iqr_s: float
    min_s: float
    max_s: float
    p90: Percentile
    p95: Percentile
    p99: Percentile
    mild_outlier_count: int
    severe_outlier_count: int
    slow_first: bool

    @property
    def ci_half_width_fraction(self) -> float:
        """Return half the interval's width over the median."""
        return (self.ci_high_s - self.ci_low_s) / (2 * self.median_s)


@dataclass(frozen=True, slots=True)
class ProcessSpread:
    """Medians of fresh processes that ran the same case; `differs` if they lie further apart than each one claims."""

    process_count: int
    median_s: float
    low_s: float
    high_s: float
    differs: bool

    @property
    def half_width_fraction(self) -> float:
        """Return half the range over the median: the error bar of the case."""
        return (self.high_s - self.low_s) / (2 * self.median_s)


def summarize(samples_s: Sequence[float]) -> Summary:
    """Return the summary of samples in the order in which they were taken; MeasurementError if one is no time."""
    refuse_bad_samples(samples_s)
    ordered = sorted(samples_s)
    median_s = quantile(ordered, 0.5)
    low, high, confidence = median_ranks(len(ordered))
    slow_first = is_slow_first(samples_s)
    mild, severe = outlier_counts(samples_s[1:] if slow_first else samples_s)
    return Summary(
        sample_count=len(ordered),
        median_s=median_s,
        ci_low_s=ordered[low],
        ci_high_s=ordered[high],
        ci_confidence_fraction=confidence,
        mad_s=quantile(sorted(abs(value - median_s) for value in ordered), 0.5),
        iqr_s=quantile(ordered, 0.75) - quantile(ordered, 0.25),
        min_s=ordered[0],
        max_s=ordered[-1],
        p90=percentile(ordered, 0.90),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        mild_outlier_count=mild,
        severe_outlier_count=severe,
        slow_first=slow_first,
    )


def refuse_bad_samples(samples_s: Sequence[float]) -> None:
    """Raise MeasurementError where there are no samples, or one that is not a positive, finite time."""
    if not samples_s:
        raise MeasurementError("No sample was taken; the budget must allow at least one call.")
    for index, value in enumerate(samples_s):
        if not (math.isfinite(value) and value > 0):
            raise MeasurementError(
                f"Sample {index} is {value!r} s; a time is positive and finite, so the clock or the kernel is broken."
            )


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Return a quantile of sorted values, linear between neighbours (type 7 of Hyndman and Fan 1996)."""
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


@cache
def median_ranks(count: int) -> tuple[int, int, float]:
    """Return the indices of the sorted samples that enclose the median with 95 %, and the exact confidence.

    The number of samples below the median is binomial(count, 1/2) for any continuous distribution, so the interval
    from the k-th smallest to the k-th largest holds it with 1 - 2 P(X < k). Fewer than 6 samples give less than 95 %.
    """
    if count > EXACT_COUNT:  # the normal limit is exact to a rank there
        rank = math.floor(count / 2 - NORMAL_QUANTILE * math.sqrt(count) / 2)
        return rank, count - 1 - rank, CONFIDENCE
    rank, tail = 0, 0.5**count
    term = tail
    while True:
        term *= (count - rank) / (rank + 1)
        if 2 * (tail + term) > 1 - CONFIDENCE:
            return rank, count - 1 - rank, 1 - 2 * tail
        rank, tail = rank + 1, tail + term


def percentile_needs(fraction: float) -> int:
    """Return the fewest samples whose largest bounds the percentile from above with 95 %: fraction**n <= 5 %."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(fraction))


def percentile(ordered: Sequence[float], fraction: float) -> Percentile:
    """Return a high percentile of sorted values where there are enough of them."""
    needed = percentile_needs(fraction)
    if len(ordered) < needed:
        return Percentile(None, f"p{100 * fraction:.0f} needs {needed} samples, there are {len(ordered)}")
    return Percentile(quantile(ordered, fraction))


def outlier_counts(samples_s: Sequence[float]) -> tuple[int, int]:
    """Return how many samples lie beyond Tukey's inner fences only, and beyond the outer ones."""
    ordered = sorted(samples_s)
    low, high = quantile(ordered, 0.25), quantile(ordered, 0.75)
    beyond = [max(low - value, value - high) for value in ordered]
    severe = sum(value > SEVERE_FENCE * (high - low) for value in beyond)
    return sum(value > MILD_FENCE * (high - low) for value in beyond) - severe, severe


def is_slow_first(samples_s: Sequence[float]) -> bool:
    """Return whether the first sample lies above the outer fence of the others: a warm-up that was too short."""
    if len(samples_s) < 5:
        return False
    others = sorted(samples_s[1:])
    low, high = quantile(others, 0.25), quantile(others, 0.75)
    return samples_s[0] > high + SEVERE_FENCE * (high - low)


def process_spread(summaries: Sequence[Summary]) -> ProcessSpread:
    """Return how the medians of processes that ran the same case spread; one process alone says its own interval."""
    medians = sorted(one.median_s for one in summaries)
    widest_low, narrowest_high = max(one.ci_low_s for one in summaries), min(one.ci_high_s for one in summaries)
    alone = summaries[0] if len(summaries) == 1 else None
    return ProcessSpread(
        process_count=len(medians),
        median_s=quantile(medians, 0.5),
        low_s=alone.ci_low_s if alone else medians[0],
        high_s=alone.ci_high_s if alone else medians[-1],
        differs=widest_low > narrowest_high,
    )
