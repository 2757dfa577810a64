import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.cost.arrays import as_floats
from codesign.cost.traffic import (
    attended_pairs,
    attention_flop,
    dequantize_flop,
    expected_experts_hit,
    gemm_activation_bytes,
    gemm_flop,
    quantize_activation_bytes,
    wire_bytes,
)


def brute_force_pairs(query_tokens: int, kv_tokens: int, window: int | None) -> int:
    """Count what each query sees, one by one."""
    seen = [kv_tokens - query_tokens + i for i in range(1, query_tokens + 1)]
    return sum(count if window is None else min(count, window) for count in seen)


@given(st.integers(1, 60), st.integers(0, 60), st.one_of(st.none(), st.integers(1, 80)))
def test_attended_pairs_equals_counting(query_tokens, cached_tokens, window):
    kv_tokens = query_tokens + cached_tokens
    pairs = attended_pairs(as_floats(query_tokens), as_floats(kv_tokens), window)
    assert float(pairs) == brute_force_pairs(query_tokens, kv_tokens, window)


def test_gemm_counts_multiply_and_add():
    assert float(gemm_flop(as_floats(3), as_floats(5), as_floats(7))) == 2 * 3 * 5 * 7


def test_activations_enter_at_their_bits_and_leave_in_sixteen():
    assert float(gemm_activation_bytes(as_floats(2), as_floats(8), as_floats(4), 8)) == 2 * 4 * 1 + 2 * 8 * 2
    assert float(quantize_activation_bytes(as_floats(2), as_floats(4), 8)) == 2 * 4 * (2 + 1)


def test_weights_are_converted_once_per_tile_of_rows():
    m = as_floats([1, 128, 129])
    assert dequantize_flop(m, as_floats(10), as_floats(10)).tolist() == [200, 200, 400]


def test_attention_flop_of_one_head():
    assert float(attention_flop(as_floats(10), as_floats(1), as_floats(64), as_floats(64))) == 2 * 10 * 128


@given(st.integers(1, 500), st.integers(1, 256), st.data())
def test_experts_hit_stays_between_its_bounds(tokens, experts, data):
    top_k = data.draw(st.integers(1, experts))
    hit = float(expected_experts_hit(*(as_floats(x) for x in (tokens, experts, top_k))))
    assert top_k * (1 - 1e-6) <= hit <= min(experts, tokens * top_k) * (1 + 1e-9)


def test_experts_hit_matches_simulation():
    generator = np.random.default_rng(0)
    trials = [len(np.unique([generator.choice(16, 2, replace=False) for _ in range(6)])) for _ in range(4000)]
    predicted = float(expected_experts_hit(as_floats(6), as_floats(16), as_floats(2)))
    assert predicted == pytest.approx(np.mean(trials), rel=0.01)


def test_ring_all_reduce_sends_almost_twice_the_message():
    assert wire_bytes("all_reduce", as_floats([1, 2, 8]), as_floats(800)).tolist() == [0, 800, 1400]
