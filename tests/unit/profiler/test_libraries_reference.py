import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.profiler.kernel import AttentionCase
from codesign.profiler.reference import (
    ROUNDINGS,
    attention,
    attention_inputs,
    product,
    quantize_int8,
    quantize_kv,
    quantize_tensor_uint8,
    rounded,
    visible,
)
from codesign.profiler.weights import quantize
from codesign.schemes.catalog import parse_scheme

pytest.importorskip("torch", reason="weights are rounded with torch")


def matrix(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)


@settings(max_examples=25, deadline=None)
@given(scheme=st.sampled_from(("W4A16-g32", "W4A8-g64-asym", "NF4", "FP8", "BF16")), rows=st.integers(0, 12))
def test_rolled_weights_give_a_rolled_product(scheme, rows):
    x, stored = matrix(3, 128, 5).astype(np.float64), quantize(matrix(7, 128), parse_scheme(scheme))
    np.testing.assert_allclose(product(x, stored.rolled(rows)), np.roll(product(x, stored), rows, axis=1), rtol=1e-12)


def test_the_product_of_many_rows_is_the_product_of_their_parts():
    x, stored = matrix(2, 64, 5).astype(np.float64), quantize(matrix(700, 64), parse_scheme("W4A16-g32-asym"))
    np.testing.assert_allclose(product(x, stored), x @ stored.dequantized().T, rtol=1e-12)


# Hand-computed: bf16 keeps 8 bits of significand, ties to even.
@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, 1.0), (1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (1 + 2**-8 + 2**-20, 1 + 2**-7), (-0.1, -0.10009765625)],
)
def test_rounding_to_bf16(value, expected):
    assert rounded(np.array([value], np.float32), "bf16")[0] == expected


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(ROUNDINGS)), m=st.integers(1, 5), k=st.integers(1, 200))
def test_rounded_activations_are_near_the_given_ones(name, m, k):
    x = matrix(m, k, m * k)
    error = np.abs(ROUNDINGS[name](x) - x)
    largest = np.abs(x).max()
    assert (error <= np.maximum(largest / 100, np.abs(x) / 15)).all()
    assert name != "none" or not error.any()


def test_int8_activations_have_a_scale_per_token_and_group():
    codes = quantize_int8(matrix(3, 100), 32)
    assert codes.scales.shape == (3, 4)
    assert np.abs(codes.codes).max() == 127


def test_8_bit_activations_with_a_zero_point_keep_zero():
    x = np.abs(matrix(2, 50)) + 1
    x[0, 0] = 0
    rounded_x = quantize_tensor_uint8(x).dequantized()
    assert rounded_x[0, 0] == 0
    assert np.abs(rounded_x - x).max() <= x.max() / 255 / 2 * 1.001


@pytest.mark.parametrize(("bits", "step"), [(8, 1 / 127), (4, 1 / 7)])
def test_stored_keys_are_within_half_a_step(bits, step):
    values = matrix(6, 64)
    largest = np.abs(values).max(axis=1, keepdims=True)
    held = quantize_kv(values, bits)
    assert (np.abs(held - values) <= largest * step * (1 + 2**-7) / 2 * 1.001).all()
    assert not quantize_kv(np.zeros((2, 8), np.float32), bits).any()


def test_attention_of_equal_keys_is_the_mean_of_what_is_visible():
    v = matrix(1, 6).reshape(1, 1, 6, 1).astype(np.float64)
    out = attention(np.ones((1, 2, 6, 1)), np.ones((1, 1, 6, 1)), v)
    expected = np.cumsum(v[0, 0, :, 0]) / np.arange(1, 7)
    np.testing.assert_allclose(out[0, 0, :, 0], expected)
    np.testing.assert_allclose(out[0, 1], out[0, 0])


def test_new_tokens_are_the_last_of_the_cached_ones():
    assert visible(1, 5).all()
    assert visible(2, 4).tolist() == [[True, True, True, False], [True] * 4]


def test_inputs_depend_on_the_seed_and_nothing_else():
    case = AttentionCase("bf16", 1, 2, 1, 16, 1, 9)
    assert (attention_inputs(case).q == attention_inputs(AttentionCase("int8", 1, 2, 1, 16, 1, 9, threads=2)).q).all()
    assert (attention_inputs(case).q != attention_inputs(AttentionCase("bf16", 1, 2, 1, 16, 1, 9, seed=1)).q).any()
