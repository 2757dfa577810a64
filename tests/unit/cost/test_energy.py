from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import round_hardware, small_model

import codesign
from codesign.cost.arrays import as_floats
from codesign.cost.energy import kernel_energy_joule, stage_energy_joule
from codesign.cost.kernels import gemm
from codesign.cost.origin import Origin
from codesign.cost.power import Load, power_model
from codesign.cost.prediction import NO_TIME, Prediction, StageTime, add_stages, stage
from codesign.cost.target import Target
from codesign.hardware.file import load_hardware
from codesign.schemes.catalog import parse_scheme

MACHINES = tuple(load_hardware(name) for name in ("h200-sxm", "a100-sxm-80gb", "l4", "epyc-9654"))
machines = st.sampled_from(MACHINES)
loads = st.floats(0, 10)
seconds = st.floats(1e-6, 10)


def joule(hardware, of_seconds: float, compute_s: float, memory_s: float) -> float:
    return float(kernel_energy_joule(hardware, as_floats(of_seconds), Load(as_floats(compute_s), as_floats(memory_s))))


@given(machines, seconds, loads, loads)
def test_power_lies_between_idle_and_the_limit(hardware, of_seconds, compute_s, memory_s):
    watt = joule(hardware, of_seconds, compute_s, memory_s) / of_seconds
    assert hardware.power.idle_watt < watt <= hardware.power.limit_watt * (1 + 1e-12)


@given(machines, seconds, loads, loads, st.floats(0, 10))
def test_more_work_or_more_time_never_needs_less_energy(hardware, of_seconds, compute_s, memory_s, more):
    base = joule(hardware, of_seconds, compute_s, memory_s) * (1 - 1e-12)
    assert joule(hardware, of_seconds, compute_s + more, memory_s) >= base
    assert joule(hardware, of_seconds, compute_s, memory_s + more) >= base
    assert joule(hardware, of_seconds + more, compute_s, memory_s) >= base


@pytest.mark.parametrize("hardware", MACHINES, ids=lambda hardware: hardware.name)
def test_waiting_streaming_and_doing_both_draw_more_and_more(hardware):
    power = hardware.power
    waiting, streaming, both = (joule(hardware, 1.0, c, m) for c, m in ((0, 0), (0, 1), (1, 1)))
    span_watt = power.limit_watt - power.idle_watt
    assert 0.05 * span_watt < waiting - power.idle_watt < 0.25 * span_watt
    assert 0.7 * span_watt < streaming - power.idle_watt < 0.9 * span_watt
    assert 0.97 * span_watt < both - power.idle_watt


# Board power while a multiplication repeats on H200 SXM: rows of the performance database of NVIDIA's aiconfigurator
# (Apache-2.0, August 2026), where the reading is of the kernel itself; flop and bytes by hand.
@pytest.mark.parametrize(
    ("m", "n", "k", "scheme", "measured_s", "measured_watt"),
    [
        (2, 12288, 12288, "BF16", 74.862e-6, 613.95),
        (2, 51200, 2048, "BF16", 54.746e-6, 571.03),
        (4096, 16384, 7168, "BF16", 1420.248e-6, 694.40),
        (768, 65536, 7168, "FP8-block", 625.054e-6, 686.34),
    ],
)
def test_measured_power(m, n, k, scheme, measured_s, measured_watt):
    hardware, weight_bytes = MACHINES[0], 2 if scheme == "BF16" else 1
    memory_s = (n * k * weight_bytes + m * k * weight_bytes + 2 * m * n) / (4800e9 * 0.85)
    peak_flop_per_s = 989.4e12 if scheme == "BF16" else 1979e12
    weight = power_model(hardware)[0].compute_8_bit / power_model(hardware)[0].compute if weight_bytes == 1 else 1.0
    compute_s = 2 * m * n * k / (peak_flop_per_s * 0.8) * weight
    assert joule(hardware, measured_s, compute_s, memory_s) / measured_s == pytest.approx(measured_watt, rel=0.1)


@pytest.mark.parametrize(("flop", "moved_bytes"), [(100e12, 0.0), (0.0, 1e12)])
def test_machines_with_the_measured_chip_spend_the_same_on_a_byte_and_a_flop(flop, moved_bytes):
    rises = []
    for name in ("h200-sxm", "h100-sxm"):
        one = load_hardware(name)
        load = (flop / one.sustained_flop_per_s("bf16"), moved_bytes / one.memory.sustained_bytes_per_s)
        rises.append(joule(one, 1.0, *load) - joule(one, 1.0, 0.0, 0.0))
    assert rises[1] == pytest.approx(rises[0], rel=1e-3)
    assert rises[0] == pytest.approx(0.767e-12 * flop + 108.5e-12 * moved_bytes, rel=0.01)


# Idle power of the profiles plus what a CUDA context adds: 38 W on H100 and A100, 66 W on L40S (arXiv 2605.23918).
@pytest.mark.parametrize(("name", "watt"), [("h100-sxm", 70 + 38), ("a100-sxm-80gb", 55 + 38), ("l40s", 35 + 66)])
def test_power_while_nothing_is_done(name, watt):
    assert joule(load_hardware(name), 1.0, 0.0, 0.0) == pytest.approx(watt, rel=0.15)


def test_a_kernel_is_loaded_by_its_bytes_and_flop_not_by_waiting():
    target = Target(MACHINES[0], "trtllm")  # with a kernel sheet, borrowed
    kernel = gemm(target, parse_scheme("BF16"), as_floats(1), as_floats(512), as_floats(512), in_step=True)
    assert float(kernel.power_load.memory_s) == pytest.approx((512 * 513 * 2 + 512 * 2) / (4800e9 * 0.85))
    assert float(kernel.power_load.compute_s) == pytest.approx(2 * 512 * 512 / (989.4e12 * 0.8))
    watt = float(kernel_energy_joule(target.hardware, kernel.predicted_s, kernel.power_load) / kernel.predicted_s)
    assert watt < 150  # launch bound: a little above 126 W with nothing but a kernel resident


def test_eight_bit_arithmetic_weighs_more_than_sixteen_bit_at_its_own_rate():
    target, rows = Target(MACHINES[0], "trtllm"), as_floats(8192)
    by_scheme = [gemm(target, parse_scheme(name), rows, rows, rows).power_load for name in ("BF16", "FP8")]
    sixteen, eight = (float(load.compute_s) for load in by_scheme)
    assert 0.5 * sixteen < eight < sixteen


def test_stages_add_their_loads():
    target = Target(round_hardware(), "vllm")
    kernel = gemm(target, parse_scheme("BF16"), as_floats([1, 64]), as_floats(1000), as_floats(2000))
    one = stage(kernel, 3)
    assert one.memory_load_s == pytest.approx(3 * float(kernel.power_load.memory_s.sum()))
    assert one.compute_load_s == pytest.approx(3 * float(kernel.power_load.compute_s.sum()))
    both = add_stages((one, one, NO_TIME))
    assert (both.memory_load_s, both.compute_load_s) == (2 * one.memory_load_s, 2 * one.compute_load_s)


@given(machines, st.floats(0.1, 1), st.floats(1, 3), loads, loads)
def test_the_interval_holds_the_value_and_is_possible(hardware, low, high, compute_s, memory_s):
    of_seconds = Prediction(1.0, low, high, Origin.MEASURED)
    energy = stage_energy_joule(hardware, StageTime(of_seconds, 0.0, 0.0, 0.0, compute_s, memory_s), 2)
    power = hardware.power
    assert 2 * power.idle_watt * low <= energy.low <= energy.value <= energy.high
    assert energy.high <= 2 * power.limit_watt * high * (1 + 1e-12)


def test_the_origin_is_that_of_the_less_trusted_of_time_and_power():
    of_seconds = Prediction(1.0, 1.0, 1.0, Origin.MEASURED)
    origins = [stage_energy_joule(one, StageTime(of_seconds, 0.0, 0.0, 0.0), 1).origin for one in MACHINES]
    assert origins == [Origin.CALIBRATED, Origin.TRANSFERRED, Origin.DATASHEET, Origin.DATASHEET]
    guessed = replace(of_seconds, origin=Origin.DATASHEET)
    assert stage_energy_joule(MACHINES[0], StageTime(guessed, 0.0, 0.0, 0.0), 1).origin is Origin.DATASHEET


def test_fewer_bytes_need_less_energy_per_token():
    energy = [
        codesign.predict(round_hardware(), small_model(), name).energy_per_token_joule for name in ("BF16", "W8A16")
    ]
    assert energy[1].value < 0.75 * energy[0].value
