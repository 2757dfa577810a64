import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.schemes.catalog import SCHEMES, parse_scheme
from codesign.schemes.scheme import PerTensor, Scheme
from codesign.schemes.storage import data_bytes, scale_bytes, scale_count, weight_bytes, zero_point_bytes

ANY_SCHEME = st.sampled_from(list(SCHEMES.values()))
SIZE = st.integers(1, 5000)


@given(ANY_SCHEME, SIZE, SIZE, SIZE, SIZE)
def test_more_weights_never_take_fewer_bytes(scheme: Scheme, n: int, k: int, more_n: int, more_k: int) -> None:
    assert weight_bytes(scheme, n, k) <= weight_bytes(scheme, n + more_n, k)
    assert weight_bytes(scheme, n, k) <= weight_bytes(scheme, n, k + more_k)


@given(SIZE, SIZE, st.integers(1, 7), st.sampled_from(["", "-g32", "-g128", "-g128-asym"]), st.sampled_from([8, 16]))
def test_fewer_bits_never_take_more_bytes(n: int, k: int, bits: int, ending: str, activation_bits: int) -> None:
    fewer = parse_scheme(f"W{bits}A{activation_bits}{ending}")
    more = parse_scheme(f"W{bits + 1}A{activation_bits}{ending}")
    if more.weights.word_bits == fewer.weights.word_bits:
        assert weight_bytes(fewer, n, k) <= weight_bytes(more, n, k)


@given(SIZE, SIZE, st.integers(1, 8), st.integers(4, 9))
def test_larger_groups_never_take_more_bytes(n: int, k: int, bits: int, power: int) -> None:
    fine, coarse = parse_scheme(f"W{bits}A16-g{2**power}"), parse_scheme(f"W{bits}A16-g{2 ** (power + 1)}")
    assert weight_bytes(coarse, n, k) <= weight_bytes(fine, n, k)


@given(ANY_SCHEME, SIZE, SIZE)
def test_bytes_hold_at_least_the_stored_bits(scheme: Scheme, n: int, k: int) -> None:
    assert weight_bytes(scheme, n, k) * 8 >= n * k * scheme.bits_per_weight - 1e-3
    parts = data_bytes(scheme, n, k) + scale_bytes(scheme, n, k) + zero_point_bytes(scheme, n, k)
    assert weight_bytes(scheme, n, k) == parts


@given(ANY_SCHEME)
def test_large_matrices_approach_bits_per_weight(scheme: Scheme) -> None:
    n = k = 2**16
    assert weight_bytes(scheme, n, k) * 8 / (n * k) == pytest.approx(scheme.bits_per_weight, rel=1e-3)


@given(ANY_SCHEME, st.lists(st.tuples(SIZE, SIZE), min_size=1, max_size=5), st.sampled_from(["int32", "int64"]))
def test_arrays_equal_scalars(scheme: Scheme, shapes: list[tuple[int, int]], dtype: str) -> None:
    n, k = (np.array(column, dtype=dtype) for column in zip(*shapes, strict=True))
    for function in (weight_bytes, data_bytes, scale_count, scale_bytes, zero_point_bytes):
        answer = function(scheme, n, k)
        assert answer.dtype.kind == "i"
        assert answer.tolist() == [function(scheme, *shape) for shape in shapes]


@pytest.mark.parametrize("name", SCHEMES)
def test_scalars_are_whole_python_numbers(name: str) -> None:
    assert type(weight_bytes(SCHEMES[name], 33, 77)) is int


def test_products_beyond_32_bits_do_not_wrap() -> None:
    n, k = np.array([2**20], dtype=np.int32), np.array([2**20], dtype=np.int32)
    assert weight_bytes(SCHEMES["NF4"], n, k).tolist() == [weight_bytes(SCHEMES["NF4"], 2**20, 2**20)]
    assert weight_bytes(SCHEMES["BF16"], n, k).tolist() == [2**41]


def test_a_ragged_last_group_has_its_own_scale() -> None:
    scheme = parse_scheme("W8A16-g128")
    assert scale_count(scheme, 3, 128) == 3
    assert scale_count(scheme, 3, 129) == 6
    assert scale_count(parse_scheme("FP8-block"), 129, 128) == 2
    assert scale_count(parse_scheme("BF16"), 3, 128) == 0


def test_a_ragged_gguf_block_counts_whole() -> None:
    scheme = parse_scheme("Q4_K")
    assert weight_bytes(scheme, 2, 257) == weight_bytes(scheme, 2, 512)


def test_one_scale_per_tensor() -> None:
    scheme = parse_scheme("W8A8-tensor")
    assert isinstance(scheme.weights.granularity, PerTensor)
    assert weight_bytes(scheme, 10, 10) == 100 + 4
    assert weight_bytes(parse_scheme("NVFP4"), 1, 16) == 8 + 1 + 4
