"""Which constants predict a kernel, and how far they are trusted."""

from dataclasses import replace

import numpy as np
import pytest

import codesign
from codesign.cost.arrays import as_floats
from codesign.cost.calibration import Chosen, choose, scaled
from codesign.cost.kernels import gemm, sheet_key, sheet_keys
from codesign.cost.origin import Origin
from codesign.cost.target import Target
from codesign.hardware.file import load_hardware
from codesign.schemes.catalog import parse_scheme


def anything(_key, _machine) -> bool:
    return True


def target(name: str, library: str) -> Target:
    return Target(codesign.load_hardware(name), library)


@pytest.mark.parametrize(
    ("hw", "library", "scheme", "origin"),
    [
        ("a100", "trtllm", "W4A16-g128", Origin.CALIBRATED),
        ("a100", "vllm", "BF16", Origin.CALIBRATED),
        ("h100", "vllm", "FP8-block", Origin.CALIBRATED),
        ("h200", "vllm", "FP8", Origin.TRANSFERRED),  # from the H100
        ("t4", "vllm", "FP16", Origin.TRANSFERRED),  # from the A100
        ("a100", "vllm", "W8A8", Origin.TRANSFERRED),  # from TensorRT-LLM
        ("a100", "vllm", "FP8", Origin.TRANSFERRED),  # emulated: from W8A16, not from the H100's own FP8
        ("a100", "vllm", "MXFP4-A16", Origin.TRANSFERRED),  # from W4A16-g128
        ("mi300x", "vllm", "BF16", Origin.DATASHEET),
        ("x86-avx512", "llama.cpp", "Q4_K", Origin.DATASHEET),
        ("zen4-2-core", "llama.cpp", "Q4_K", Origin.CALIBRATED),
        ("zen4-2-core", "torch", "W8A8", Origin.CALIBRATED),
    ],
)
def test_the_origin_says_whose_constants_they_are(hw, library, scheme, origin):
    prediction = gemm(target(hw, library), parse_scheme(scheme), as_floats(16), as_floats(4096), as_floats(4096))
    assert prediction.origin is origin
    assert prediction.low_s < prediction.predicted_s < prediction.high_s


def test_borrowed_constants_have_wider_intervals():
    own, relative, library = (
        choose(target(*where), "gemm", [["BF16"]], anything)
        for where in (("a100", "vllm"), ("h200", "vllm"), ("a100", "sglang"))
    )
    for borrowed in (relative, library):
        assert borrowed.low_factor < own.low_factor
        assert borrowed.high_factor > own.high_factor


def test_a_copy_of_a_machine_borrows_from_it():
    mine = replace(codesign.load_hardware("a100"), name="mine")
    copied = choose(Target(mine, "vllm"), "gemm", [["BF16"]], anything)
    assert copied.origin is Origin.TRANSFERRED
    assert copied.constants == choose(target("a100", "vllm"), "gemm", [["BF16"]], anything).constants


def test_seconds_on_the_device_go_with_the_clock_and_those_on_the_host_stay():
    a100, h100 = codesign.load_hardware("a100"), codesign.load_hardware("h100")
    moved = scaled({"split_s": 1e-6, "host_s": 1e-4, "k_latency_cycles": 3.0}, h100, a100)
    assert moved["split_s"] == pytest.approx(1e-6 * a100.boost_clock_hz / h100.boost_clock_hz)
    assert (moved["host_s"], moved["k_latency_cycles"]) == (1e-4, 3.0)


def test_the_host_does_not_hold_up_a_captured_step():
    """vLLM's block FP8 on the H100 is bound by its caller when measured call by call."""
    where, scheme = target("h100", "vllm"), parse_scheme("FP8-block")
    m, n, k = as_floats(1), as_floats(4096), as_floats(4096)
    alone, in_step = gemm(where, scheme, m, n, k), gemm(where, scheme, m, n, k, in_step=True)
    assert in_step.predicted_s < alone.predicted_s


def test_a_machine_that_sustains_less_gets_less():
    a100, t4 = codesign.load_hardware("a100"), codesign.load_hardware("t4")
    constants = {"compute_fraction": 0.9, "vector_bandwidth_fraction": 0.8}
    smaller = scaled(constants, t4, a100)
    assert smaller["compute_fraction"] == pytest.approx(0.9 * 0.37 / 0.87)
    assert smaller["vector_bandwidth_fraction"] < 0.8
    assert scaled(constants, a100, t4) == constants


def test_intervals_widen_outside_of_what_was_fitted():
    one = Chosen({}, {"m": (1.0, 100.0)}, 0.9, 1.1, Origin.CALIBRATED)
    sizes = as_floats([50, 100, 200, 400])
    low, high = one.interval(np.ones(4), {"m": sizes})
    assert low[0] == low[1] == pytest.approx(0.9)
    assert (np.diff(low[1:]) < 0).all()
    assert (np.diff(high[1:]) > 0).all()


def test_group_sizes_share_their_kernels():
    g32, g128 = parse_scheme("W4A16-g32"), parse_scheme("W4A16-g128")
    a100, cpu = load_hardware("a100"), load_hardware("x86-avx512")
    assert sheet_key(g32, a100) == sheet_key(g128, a100) == "W4A16-g128"
    assert sheet_key(g32, cpu) == "W4A16-g32"
    assert sheet_keys(parse_scheme("NVFP4-A16"), False) == ("NVFP4-A16", "W4A16-g128")


def test_slower_at_large_batch_is_said():
    """Measured on the A100 with TensorRT-LLM: W4A16 2.35x at m = 1, below 1 from m = 256 on (cost model notes)."""
    where = target("a100", "trtllm")
    m = as_floats([1, 1024])
    sixteen, four = (
        gemm(where, parse_scheme(s), m, as_floats(8192), as_floats(8192)).predicted_s for s in ("BF16", "W4A16-g128")
    )
    gain = sixteen / four
    assert 1.8 < gain[0] < 3.2
    assert gain[1] < 1.0
