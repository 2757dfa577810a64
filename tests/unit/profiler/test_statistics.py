import dataclasses
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.codec import from_plain, to_plain
from codesign.errors import MeasurementError
from codesign.profiler.statistics import (
    Summary,
    median_ranks,
    outlier_counts,
    percentile_needs,
    process_spread,
    quantile,
    summarize,
)

times = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=80)


def normal_times(count: int, seed: int = 0, mean_s: float = 1e-3, sd_fraction: float = 0.01) -> list[float]:
    generator = random.Random(seed)
    return [mean_s * generator.gauss(1.0, sd_fraction) for _ in range(count)]


def binomial_confidence(count: int, rank: int) -> float:
    return 1 - 2 * sum(math.comb(count, i) for i in range(rank + 1)) / 2**count


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 29, 30, 100, 300, 999, 1000])
def test_the_interval_is_the_narrowest_that_holds_95_percent(count):
    low, high, confidence = median_ranks(count)
    assert low + high == count - 1
    assert confidence == pytest.approx(binomial_confidence(count, low), abs=1e-9)
    assert (confidence >= 0.95) == (count >= 6)
    if count >= 6:
        assert binomial_confidence(count, low + 1) < 0.95


@pytest.mark.parametrize("count", [1001, 1500, 5001])
def test_the_normal_limit_is_exact_to_a_rank(count):
    low, high, _ = median_ranks(count)
    assert low + high == count - 1
    assert binomial_confidence(count, low - 1) >= 0.95 > binomial_confidence(count, low + 2)


@given(times)
def test_the_summary_is_in_order_and_agrees_with_the_standard_library(samples):
    summary = summarize(samples)
    assert summary.median_s == pytest.approx(statistics.median(samples))
    assert summary.min_s <= summary.ci_low_s <= summary.median_s * (1 + 1e-12)
    assert summary.median_s * (1 - 1e-12) <= summary.ci_high_s <= summary.max_s
    assert (summary.min_s, summary.max_s, summary.sample_count) == (min(samples), max(samples), len(samples))
    assert summary.mad_s >= 0
    assert summary.max_s - summary.min_s >= summary.iqr_s >= 0


@given(times, st.floats(1e-3, 1e3))
def test_the_summary_scales_with_the_unit(samples, factor):
    one, other = summarize(samples), summarize([factor * value for value in samples])
    assert other.median_s == pytest.approx(factor * one.median_s)
    assert other.iqr_s == pytest.approx(factor * one.iqr_s, rel=1e-6, abs=1e-12 * factor * one.max_s)


def test_a_summary_round_trips_through_plain_values():
    summary = summarize(normal_times(60))
    assert from_plain(Summary, to_plain(summary), "record") == summary


@pytest.mark.parametrize(("name", "fraction", "needed"), [("p90", 0.9, 29), ("p95", 0.95, 59), ("p99", 0.99, 299)])
def test_a_high_percentile_needs_enough_samples(name, fraction, needed):
    assert percentile_needs(fraction) == needed
    missing = getattr(summarize(normal_times(needed - 1)), name)
    assert missing.value_s is None
    assert f"needs {needed} samples, there are {needed - 1}" in missing.why
    samples = normal_times(needed)
    present = getattr(summarize(samples), name)
    assert present.why is None
    assert present.value_s == pytest.approx(quantile(sorted(samples), fraction))


def test_fifty_samples_have_no_p99_and_three_hundred_have():
    assert to_plain(summarize(normal_times(50)).p99) == {
        "value_s": None,
        "why": "p99 needs 299 samples, there are 50",
    }
    assert summarize(normal_times(300)).p99.value_s > 1e-3


def test_one_outlier_in_a_hundred_is_counted_and_hardly_moves_the_median():
    samples = normal_times(100, seed=3)
    before = summarize(samples)
    after = summarize([*samples[:50], 10 * samples[50], *samples[51:]])
    assert abs(after.median_s / before.median_s - 1) < 0.003
    assert after.severe_outlier_count == before.severe_outlier_count + 1
    assert after.sample_count == 100
    assert after.max_s > 9 * before.median_s
    assert not after.slow_first


def test_a_slow_first_sample_is_flagged_and_is_no_outlier():
    samples = normal_times(100, seed=4)
    plain = summarize(samples)
    slow = summarize([5 * samples[0], *samples[1:]])
    assert (plain.slow_first, slow.slow_first) == (False, True)
    assert (slow.mild_outlier_count, slow.severe_outlier_count) == outlier_counts(samples[1:])
    assert slow.sample_count == 100


def test_outliers_are_split_by_the_two_fences():
    samples = [1.0, 2.0, 3.0, 4.0, 5.0]  # quartiles 2 and 4: fences at -1 and 7, and at -4 and 10
    assert outlier_counts(samples) == (0, 0)
    assert outlier_counts([*samples, 1.5, 2.5, 3.5, 4.5, 9.0]) == (1, 0)
    assert outlier_counts([*samples, 1.5, 2.5, 3.5, 4.5, 90.0]) == (0, 1)


@pytest.mark.parametrize("bad", [0.0, -1e-3, math.nan, math.inf])
def test_what_is_no_time_is_refused(bad):
    with pytest.raises(MeasurementError, match="Sample 1 is"):
        summarize([1.0, bad])


def test_no_samples_are_refused():
    with pytest.raises(MeasurementError, match="No sample"):
        summarize([])


def test_processes_that_disagree_widen_the_error_bar():
    fast, slow = summarize(normal_times(100, seed=1)), summarize(normal_times(100, seed=2, mean_s=1.2e-3))
    same = process_spread((fast, summarize(normal_times(100, seed=5))))
    apart = process_spread((fast, slow))
    assert not same.differs
    assert apart.differs
    assert apart.half_width_fraction == pytest.approx(0.1 / 1.1, rel=0.02)
    assert apart.half_width_fraction > 20 * fast.ci_half_width_fraction
    assert apart.process_count == 2


def test_one_process_alone_has_its_own_interval():
    summary = summarize(normal_times(40))
    spread = process_spread((summary,))
    assert (spread.low_s, spread.high_s, spread.differs) == (summary.ci_low_s, summary.ci_high_s, False)


def test_a_summary_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        summarize([1.0]).median_s = 2.0
