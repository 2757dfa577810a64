from dataclasses import replace

import numpy as np
import pytest
from attention_constants import DECODE, PREFILL, SINGLE
from machines import round_hardware

from codesign.cost.attention_time import (
    AttentionShape,
    attention_work,
    decode_constants_problem,
    decode_seconds,
    prefill_constants_problem,
    prefill_seconds,
)
from codesign.cost.fit_attention import AttentionRows, fit_attention_decode, fit_attention_prefill, possible_rows
from codesign.errors import InputError
from codesign.schemes.kv import parse_kv

BF16 = parse_kv("bf16")
TRUTH = DECODE | SINGLE | {"packed_group_max": 32.0, "single_fixed_s": 2e-5, "single_load_bytes_per_cycle": 5.0}


def sizes(query: float | None) -> np.ndarray:
    """Return batch, query, KV tokens, heads, KV heads, head dimension as columns; query None means prompts."""
    shapes = ((1, 1), (8, 1), (64, 1), (8, 8), (32, 8), (128, 8), (64, 64), (40, 40), (96, 2))
    return np.array(
        [
            (batch, query or kv, kv, heads, kv_heads, 128)
            for heads, kv_heads in shapes
            for batch in (1, 4, 32)
            for kv in (64, 512, 2048, 8192)
        ],
        dtype=float,
    ).T


def measured(formula, constants, query: float | None, noise: float = 0.02) -> AttentionRows:
    columns = sizes(query)
    work = attention_work(round_hardware(), "bf16", AttentionShape(*columns), np.full(columns.shape[1], 512.0))
    scatter = np.exp(np.random.default_rng(2).normal(0, noise, columns.shape[1]))
    return AttentionRows(*columns, formula(constants, work).predicted_s * scatter)


@pytest.fixture(scope="module")
def decode_rows():
    return measured(decode_seconds, TRUTH, 1.0)


@pytest.fixture(scope="module")
def decode_fit(decode_rows):
    return fit_attention_decode(decode_rows, round_hardware(), BF16)


def test_decode_finds_the_two_kernels_and_where_they_part(decode_fit):
    assert decode_fit.constants["packed_group_max"] == 32.0
    assert decode_fit.constants["single_fixed_s"] > 1.5 * decode_fit.constants["fixed_s"]
    assert decode_constants_problem(decode_fit.constants) is None


def test_decode_predicts_groups_that_it_has_not_seen(decode_fit):
    unseen = np.array([[2.0, 16], [1, 1], [3000, 700], [24, 20], [4, 20], [128, 128]])
    work = attention_work(round_hardware(), "bf16", AttentionShape(*unseen), np.full(2, 512.0))
    ratio = decode_seconds(decode_fit.constants, work).predicted_s / decode_seconds(TRUTH, work).predicted_s
    assert ratio == pytest.approx([1.0, 1.0], abs=0.15)


def test_the_calibration_says_what_it_was_fitted_on(decode_fit, decode_rows):
    assert decode_fit.sample_count == len(decode_rows.batch)
    assert decode_fit.fit_range["kv_tokens"] == (64.0, 8192.0)
    assert 0.0 < decode_fit.error_fraction < 0.15
    assert decode_fit.low_factor < 1.0 < decode_fit.high_factor


def test_the_order_of_the_rows_does_not_matter(decode_fit, decode_rows):
    shuffled = decode_rows.take(np.random.default_rng(1).permutation(len(decode_rows.batch)))
    assert fit_attention_decode(shuffled, round_hardware(), BF16) == decode_fit


def test_one_kind_of_group_needs_one_kernel(decode_rows):
    groups_of_four = decode_rows.take(decode_rows.group == 16.0)
    wide = AttentionRows(*(np.tile(getattr(groups_of_four, name), 2) for name in AttentionRows.__slots__))
    assert not any(name.startswith("single_") for name in fit_attention_decode(wide, round_hardware(), BF16).constants)


@pytest.mark.parametrize("packing", [0.0, 2.0])
def test_prefill_finds_packing_and_predicts(packing):
    truth = PREFILL | {"packing": packing} if packing else PREFILL
    fit = fit_attention_prefill(measured(prefill_seconds, truth, None), round_hardware(), BF16)
    assert fit.constants.get("packing", 0.0) == packing
    assert fit.error_fraction < 0.06
    assert prefill_constants_problem(fit.constants) is None


def test_rows_faster_than_memory_are_not_fitted(decode_rows, decode_fit):
    doubtful = decode_rows.kv_tokens * decode_rows.batch * decode_rows.kv_heads >= 2e6
    assert doubtful.sum() > 3
    wrong = replace(decode_rows, seconds=np.where(doubtful, decode_rows.seconds / 9, decode_rows.seconds))
    assert not possible_rows(wrong, round_hardware(), BF16)[doubtful].any()
    assert possible_rows(decode_rows, round_hardware(), BF16).all()
    fit = fit_attention_decode(wrong, round_hardware(), BF16)
    assert fit.sample_count == len(decode_rows.batch) - doubtful.sum()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seconds": -1.0}, "seconds: a value is not within"),
        ({"seconds": np.nan}, "seconds: a value is not within"),
        ({"heads": 0.0}, "heads: a value is not within"),
        ({"kv_tokens": 1e12}, "kv_tokens: a value is not within"),
    ],
)
def test_absurd_numbers_are_refused(decode_rows, change, expected):
    (name, value), *_ = change.items()
    column = getattr(decode_rows, name).copy()
    column[3] = value
    with pytest.raises(InputError, match=expected):
        fit_attention_decode(replace(decode_rows, **{name: column}), round_hardware(), BF16)


def test_too_few_or_ragged_rows_are_refused(decode_rows):
    with pytest.raises(InputError, match="too few"):
        fit_attention_decode(decode_rows.take(np.arange(10)), round_hardware(), BF16)
    with pytest.raises(InputError, match="differ in length"):
        fit_attention_decode(replace(decode_rows, batch=np.ones(3)), round_hardware(), BF16)
