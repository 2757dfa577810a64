from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import round_hardware

from codesign.cost.arrays import as_floats, smooth_maximum
from codesign.cost.moe_time import CHUNK_ROWS, MoeShape, moe_constants_problem, moe_seconds
from codesign.errors import CapabilityError
from codesign.hardware.file import load_hardware
from codesign.schemes.catalog import parse_scheme

BASE = {
    "fixed_s": 2e-5,
    "expert_s": 3e-8,
    "hit_expert_s": 2e-8,
    "bandwidth_fraction": 0.9,
    "compute_fraction": 0.8,
    "load_bytes_per_cycle": 150.0,
    "tile_overhead_s": 5e-7,
    "overlap_exponent": 2.5,
    "pass_bandwidth_fraction": 0.5,
    "remote_row_fraction": 0.1,
}
WEIGHT_ONLY = BASE | {"dequantized_weights_per_cycle": 50.0}
cases = st.sampled_from(
    [(parse_scheme("BF16"), BASE), (parse_scheme("W8A8"), BASE), (parse_scheme("W4A16-g128"), WEIGHT_ONLY)]
)
sizes = st.integers(1, 8192)
blocks = st.sampled_from([(8, 2, 1), (64, 8, 4), (256, 8, 8), (512, 22, 1)])  # experts, top_k, devices


def shape(tokens, hidden, intermediate, block=(64, 8, 1), skew=0.0, matrices=3) -> MoeShape:
    experts, top_k, devices = block
    numbers = (tokens, hidden, intermediate, experts, top_k, skew, matrices, devices)
    return MoeShape(*(as_floats(number) for number in numbers))


def seconds(constants, hardware, scheme, *sizes_and_block, **more) -> float:
    return float(moe_seconds(constants, hardware, scheme, shape(*sizes_and_block, **more)).predicted_s)


@given(cases, sizes, sizes, sizes, blocks, sizes)
def test_more_tokens_or_wider_matrices_are_never_faster(case, tokens, hidden, intermediate, block, more):
    scheme, constants = case
    base = seconds(constants, round_hardware(), scheme, tokens, hidden, intermediate, block)
    for larger in (
        (tokens + more, hidden, intermediate),
        (tokens, hidden + more, intermediate),
        (tokens, hidden, intermediate + more),
    ):
        assert seconds(constants, round_hardware(), scheme, *larger, block) >= base * (1 - 1e-12)


@given(cases, sizes, sizes, sizes, blocks, st.integers(1, 2))
def test_more_choices_or_a_gate_are_never_faster(case, tokens, hidden, intermediate, block, more):
    scheme, constants = case
    experts, top_k, devices = block
    base = seconds(constants, round_hardware(), scheme, tokens, hidden, intermediate, block, matrices=2)
    for changed, matrices in (((experts, top_k + more, devices), 2), (block, 3)):
        slower = seconds(constants, round_hardware(), scheme, tokens, hidden, intermediate, changed, matrices=matrices)
        assert slower >= base * (1 - 1e-12)


@given(cases, sizes, sizes, sizes, blocks, st.sampled_from([0.0, 1.2]), st.floats(1, 10))
def test_a_better_machine_is_never_slower(case, tokens, hidden, intermediate, block, skew, factor):
    scheme, constants = case
    machine = round_hardware()
    peaks = {dtype: rate * factor for dtype, rate in machine.peak_flop_per_s.items()}
    memory = replace(machine.memory, bandwidth_bytes_per_s=machine.memory.bandwidth_bytes_per_s * factor)
    one = (scheme, tokens, hidden, intermediate, block, skew)
    base = seconds(constants, machine, *one)
    for change in ({"peak_flop_per_s": peaks}, {"memory": memory}, {"boost_clock_hz": 1e9 * factor}):
        assert seconds(constants, replace(machine, **change), *one) <= base * (1 + 1e-12)


@given(cases, sizes, sizes, sizes, blocks, st.sampled_from([0.0, 1.01]))
def test_time_is_at_least_launch_and_memory_and_launch_and_compute(case, tokens, hidden, intermediate, block, skew):
    scheme, constants = case
    one = shape(tokens, hidden, intermediate, block, skew)
    time = moe_seconds(constants, round_hardware(), scheme, one)
    assert min(time.compute_s, time.memory_s, time.fixed_s) > 0
    assert time.predicted_s >= (time.fixed_s + max(time.memory_s, time.compute_s)) * (1 - 1e-12)


def test_a_few_tokens_stream_the_weights_of_the_experts_hit():
    # 4 tokens hit 32 of 64 experts: 32 x 3 matrices of 2 bytes at 0.9 of 2 TB/s.
    expected_s = 32 * 3 * 4096 * 8192 * 2 / (0.9 * 2e12)
    assert seconds(BASE, round_hardware(), parse_scheme("BF16"), 4, 4096, 8192) == pytest.approx(expected_s, rel=0.1)


def test_many_tokens_multiply_at_the_sustained_rate():
    flop = 2.0 * 65536 * 8 * 3 * 4096 * 8192
    constants = BASE | {"load_bytes_per_cycle": 1e4, "tile_overhead_s": 1e-9, "pass_bandwidth_fraction": 1.0}
    time = moe_seconds(constants, round_hardware(), parse_scheme("BF16"), shape(65536, 4096, 8192))
    assert float(time.compute_s) == pytest.approx(flop / (0.8 * 200e12), rel=0.01)


def test_rows_of_other_devices_cost_only_kernels_that_walk_over_them():
    one = (parse_scheme("BF16"), 4096, 2048, 2048, (64, 8, 8))
    skipping, walking = (
        seconds(BASE | {"remote_row_fraction": share}, round_hardware(), *one) for share in (1e-3, 1.0)
    )
    remote_bytes = 4096 * 8 * 7 / 8 * (2 * 2 * 2048 + 2048 + 2 * 2048) * 2
    assert walking - skipping == pytest.approx((1.0 - 1e-3) * remote_bytes / (0.5 * 2e12), rel=1e-6)


# Medians measured on H100 SXM with vLLM 0.24.0, bf16, balanced routing: tokens, hidden, intermediate, experts, top_k,
# devices, seconds. Source: performance database of NVIDIA's aiconfigurator (Apache-2.0, August 2026).
MEASURED = (
    (64, 4096, 14336, (8, 2, 1), 969e-6),
    (16384, 4096, 14336, (8, 2, 1), 22561e-6),
    (64, 2048, 768, (128, 8, 1), 432e-6),
    (16, 2048, 768, (128, 8, 8), 91e-6),
    (16384, 2048, 512, (256, 8, 64), 808e-6),
)
# Fitted on a subset of the same database.
H100_BF16 = {
    "fixed_s": 2.643e-05,
    "expert_s": 3.78e-08,
    "hit_expert_s": 3.583e-09,
    "bandwidth_fraction": 0.8914,
    "compute_fraction": 0.8201,
    "load_bytes_per_cycle": 90.15,
    "tile_overhead_s": 6.473e-07,
    "overlap_exponent": 2.649,
    "pass_bandwidth_fraction": 0.5649,
    "remote_row_fraction": 0.8446,
}


@pytest.mark.parametrize(("tokens", "hidden", "intermediate", "block", "measured_s"), MEASURED)
def test_measured_blocks_on_h100(tokens, hidden, intermediate, block, measured_s):
    found_s = seconds(H100_BF16, load_hardware("h100-sxm"), parse_scheme("BF16"), tokens, hidden, intermediate, block)
    assert found_s == pytest.approx(measured_s, rel=0.2)


def test_arrays_broadcast_and_equal_single_rows_beyond_one_chunk():
    many = replace(shape(1, 2048, 1024), tokens=np.arange(1.0, CHUNK_ROWS + 100)[:, None], skew=np.array([[0.0, 1.2]]))
    many = replace(many, tokens=np.minimum(many.tokens, 50.0))
    times = moe_seconds(BASE, round_hardware(), parse_scheme("BF16"), many).predicted_s
    assert times.shape == (CHUNK_ROWS + 99, 2)
    assert times[-1, 1] == seconds(BASE, round_hardware(), parse_scheme("BF16"), 50, 2048, 1024, skew=1.2)


def test_no_rows_give_no_times():
    none = replace(shape(1, 64, 64), tokens=np.zeros(0))
    assert moe_seconds(BASE, round_hardware(), parse_scheme("BF16"), none).predicted_s.shape == (0,)


def test_a_scheme_that_cannot_run_is_refused():
    with pytest.raises(CapabilityError, match="BF16 does not run on round"):
        seconds(BASE, round_hardware(peak_flop_per_s={"int8": 1e12}), parse_scheme("BF16"), 1, 64, 64)


def test_the_smooth_maximum_is_above_both_and_never_overflows():
    high = smooth_maximum(as_floats([0.0, 3.0, 1e300]), as_floats([0.0, 4.0, 1e300]), 2.0)
    assert high == pytest.approx([0.0, 5.0, 2**0.5 * 1e300])


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({}, "missing fixed_s"),
        (BASE | {"speed": 1.0}, "speed is no constant"),
        (BASE | {"bandwidth_fraction": 0.0}, "bandwidth_fraction is 0"),
        (BASE | {"fixed_s": float("nan")}, "fixed_s is nan"),
        (BASE | {"overlap_exponent": 0.5}, "overlap_exponent must be"),
        (BASE | {"remote_row_fraction": 1.5}, "remote_row_fraction must be"),
    ],
)
def test_constants_are_checked(constants, words):
    assert words in str(moe_constants_problem(constants))


def test_good_constants_have_no_problem():
    assert moe_constants_problem(BASE) is None
    assert moe_constants_problem(WEIGHT_ONLY) is None
