from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import round_hardware

from codesign.cost.arrays import as_floats
from codesign.cost.gemm_time import (
    CHUNK_ROWS,
    TilePolicy,
    gemm_constants_problem,
    gemm_seconds,
)
from codesign.errors import CapabilityError
from codesign.schemes.catalog import parse_scheme

BASE = {
    "fixed_s": 4e-6,
    "bandwidth_fraction": 0.8,
    "compute_fraction": 0.9,
    "k_latency_cycles": 1.0,
    "load_bytes_per_cycle": 200.0,
    "tile_overhead_s": 1e-6,
    "wave_fraction": 0.6,
    "split_s": 2e-6,
    "overlap_exponent": 3.0,
}
VECTOR = {
    "vector_fixed_s": 3e-6,
    "vector_bandwidth_fraction": 0.9,
    "vector_compute_fraction": 0.3,
    "vector_k_latency_cycles": 0.5,
}
QUANTIZE = {"quantize_bandwidth_fraction": 0.5, "quantize_row_s": 1e-9}
HOST = {"host_s": 2e-5, "host_extra_s": 1e-5, "host_rows": 16.0}
FORMS = {
    "BF16": (BASE, BASE | VECTOR, BASE | HOST, BASE | {"tile_policy": 1.0}, BASE | VECTOR | {"tile_policy": 2.0}),
    "W4A16-g128": (BASE | VECTOR | {"dequantized_weights_per_cycle": 200.0},),
    "W8A8": (BASE | QUANTIZE, BASE | QUANTIZE | VECTOR | HOST),
}
cases = st.sampled_from([(parse_scheme(name), form) for name, forms in FORMS.items() for form in forms])
sizes = st.integers(1, 20_000)


def seconds(constants, hardware, scheme, m, n, k) -> float:
    return float(gemm_seconds(constants, hardware, scheme, as_floats(m), as_floats(n), as_floats(k)).predicted_s)


@given(cases, sizes, sizes, sizes, sizes)
def test_more_rows_columns_or_depth_are_never_faster(case, m, n, k, more):
    scheme, constants = case
    base = seconds(constants, round_hardware(), scheme, m, n, k)
    for larger in ((m + more, n, k), (m, n + more, k), (m, n, k + more)):
        assert seconds(constants, round_hardware(), scheme, *larger) >= base * (1 - 1e-12)


@given(cases, sizes, sizes, sizes, st.floats(1, 10))
def test_a_better_machine_is_never_slower(case, m, n, k, factor):
    scheme, constants = case
    machine = round_hardware()
    peaks = {dtype: rate * factor for dtype, rate in machine.peak_flop_per_s.items()}
    memory = replace(machine.memory, bandwidth_bytes_per_s=machine.memory.bandwidth_bytes_per_s * factor)
    base = seconds(constants, machine, scheme, m, n, k)
    for change in ({"peak_flop_per_s": peaks}, {"memory": memory}, {"boost_clock_hz": 1e9 * factor}):
        assert seconds(constants, replace(machine, **change), scheme, m, n, k) <= base * (1 + 1e-12)


@given(cases, sizes, sizes, sizes)
def test_time_is_at_least_memory_compute_and_fixed_time(case, m, n, k):
    scheme, constants = case
    time = gemm_seconds(constants, round_hardware(), scheme, as_floats(m), as_floats(n), as_floats(k))
    parts = np.array([time.compute_s, time.memory_s, time.fixed_s])
    assert np.all(parts > 0)
    assert float(time.predicted_s) >= float(parts.max()) * (1 - 1e-12)


def test_a_large_multiplication_runs_at_the_sustained_rate():
    flop = 2.0 * 8192**3
    assert seconds(BASE, round_hardware(), parse_scheme("BF16"), 8192, 8192, 8192) == pytest.approx(
        flop / (0.9 * 200e12), rel=0.1
    )


def test_a_single_row_streams_the_weights():
    expected_s = 4e-6 + 2.0 * 16384 * 16384 / (0.8 * 2e12)
    assert seconds(BASE, round_hardware(), parse_scheme("BF16"), 1, 16384, 16384) == pytest.approx(expected_s, rel=0.1)


def test_arrays_broadcast_and_equal_single_rows_beyond_one_chunk():
    m, n = np.arange(1.0, CHUNK_ROWS + 100)[:, None], np.array([[512.0, 4096.0]])
    times = gemm_seconds(BASE, round_hardware(), parse_scheme("BF16"), m, n, as_floats(1024)).predicted_s
    assert times.shape == (len(m), 2)
    assert times[-1, 1] == seconds(BASE, round_hardware(), parse_scheme("BF16"), m[-1, 0], 4096, 1024)


def test_no_rows_give_no_times():
    none = np.zeros(0)
    assert gemm_seconds(BASE, round_hardware(), parse_scheme("BF16"), none, none, none).predicted_s.shape == (0,)


def test_policy_by_rows_takes_the_smallest_tile_that_holds_all_rows():
    # k is long and one wave suffices, so time follows the tile: 64 rows, then 128, then 256.
    constants = BASE | {"tile_policy": float(TilePolicy.BY_ROWS), "split_s": 1.0}
    at = [seconds(constants, round_hardware(), parse_scheme("BF16"), m, 64, 16384) for m in (64, 65, 128, 129, 256)]
    assert at[1] > 1.5 * at[0]
    assert at[3] > 1.5 * at[2]
    assert at[1] == pytest.approx(at[2], rel=0.01)
    assert at[3] == pytest.approx(at[4], rel=0.01)


def test_large_tiles_when_full_lose_to_the_best_tiles():
    large = BASE | {"tile_policy": float(TilePolicy.LARGE_WHEN_FULL), "wave_fraction": 1.0}
    best = large | {"tile_policy": float(TilePolicy.BEST)}
    shape = (128 * 101, 256, 4096)  # 101 of the largest tiles on 100 units: a second wave for one
    times = [seconds(form, round_hardware(), parse_scheme("BF16"), *shape) for form in (large, best)]
    assert times[0] > 1.1 * times[1]


def test_host_time_is_a_floor_and_not_added():
    small = seconds(BASE | HOST, round_hardware(), parse_scheme("BF16"), 1, 512, 512)
    large = seconds(BASE | HOST, round_hardware(), parse_scheme("BF16"), 8192, 8192, 8192)
    assert small == pytest.approx(2e-5, rel=0.05)
    assert large == pytest.approx(seconds(BASE, round_hardware(), parse_scheme("BF16"), 8192, 8192, 8192), rel=1e-3)


def test_a_scheme_that_cannot_run_is_refused():
    lacking = round_hardware(peak_flop_per_s={"int8": 1e12})
    with pytest.raises(CapabilityError, match="BF16 does not run on round"):
        seconds(BASE, lacking, parse_scheme("BF16"), 1, 64, 64)


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({}, "missing fixed_s"),
        (BASE | {"vector_fixed_s": 1e-6}, "missing vector_bandwidth_fraction"),
        (BASE | {"speed": 1.0}, "speed is no constant"),
        (BASE | {"bandwidth_fraction": 0.0}, "bandwidth_fraction is 0"),
        (BASE | {"tile_policy": 7.0}, "tile_policy is 7"),
        (BASE | {"overlap_exponent": 0.5}, "overlap_exponent must be"),
    ],
)
def test_constants_are_checked(constants, words):
    assert words in str(gemm_constants_problem(constants))


def test_good_constants_have_no_problem():
    assert all(gemm_constants_problem(form) is None for forms in FORMS.values() for form in forms)
