import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codesign.cost.arrays import as_floats
from codesign.cost.roofline import Bound, OpCost, Rates, kernel_time

amounts = st.floats(0, 1e15)
rates = st.floats(1e6, 1e15)


def cost(flop=0.0, vector_flop=0.0, weight_bytes=0.0, activation_bytes=0.0, kv_bytes=0.0, launches=1.0) -> OpCost:
    return OpCost(*(as_floats(x) for x in (flop, vector_flop, weight_bytes, activation_bytes, kv_bytes, launches)))


def test_time_is_fixed_plus_the_larger_term():
    time = kernel_time(cost(flop=4e12, weight_bytes=1e12), Rates(2e12, 1e12, 1e12, 0.5))
    assert (float(time.compute_s), float(time.memory_s), float(time.predicted_s)) == (2.0, 1.0, 2.5)
    assert str(time.bound) == Bound.COMPUTE


def test_each_bound_is_named():
    time = kernel_time(
        OpCost(*(as_floats(x) for x in ([9, 0, 0], 0, [0, 9, 1], 0, 0, [1, 1, 1]))), Rates(1.0, 1.0, 1.0, 2.0)
    )
    assert time.bound.tolist() == ["compute", "memory", "latency"]


@given(amounts, amounts, amounts, rates, rates, st.floats(1, 100))
def test_more_bandwidth_or_rate_is_never_slower(flop, vector_flop, weight_bytes, flop_per_s, bytes_per_s, factor):
    work = cost(flop, vector_flop, weight_bytes)
    slow = kernel_time(work, Rates(flop_per_s, flop_per_s, bytes_per_s, 1e-6)).predicted_s
    for faster in (
        Rates(flop_per_s * factor, flop_per_s, bytes_per_s, 1e-6),
        Rates(flop_per_s, flop_per_s * factor, bytes_per_s, 1e-6),
        Rates(flop_per_s, flop_per_s, bytes_per_s * factor, 1e-6),
    ):
        assert kernel_time(work, faster).predicted_s <= slow


@given(st.lists(amounts, min_size=5, max_size=5), rates, rates)
def test_time_is_at_least_each_of_its_terms(values, flop_per_s, bytes_per_s):
    time = kernel_time(cost(*values), Rates(flop_per_s, flop_per_s, bytes_per_s, 1e-6))
    assert time.predicted_s >= max(time.compute_s, time.memory_s)
    assert time.predicted_s >= time.fixed_s


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=6), rates, rates)
def test_sum_of_kernels_is_never_below_the_roofline_of_their_sum(kernels, flop_per_s, bytes_per_s):
    machine = Rates(flop_per_s, flop_per_s, bytes_per_s, 0.0)
    parts = sum(float(kernel_time(cost(flop=f, weight_bytes=b), machine).predicted_s) for f, b in kernels)
    flop, moved = (sum(column) for column in zip(*kernels, strict=True))
    whole = float(kernel_time(cost(flop=flop, weight_bytes=moved), machine).predicted_s)
    assert parts >= whole * (1 - 1e-12)


def test_bytes_are_the_sum_of_the_streams():
    assert float(cost(weight_bytes=1, activation_bytes=2, kv_bytes=4).bytes) == 7
    assert np.isscalar(float(cost().bytes))
