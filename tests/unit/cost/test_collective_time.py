from hypothesis import given
from hypothesis import strategies as st

from codesign.cost.arrays import as_floats
from codesign.cost.collective_time import collective_constants_problem, collective_seconds
from codesign.cost.traffic import WIRE_PASSES

RING = {
    "fixed_s": 1e-5,
    "hop_s": 1e-6,
    "bandwidth_fraction": 0.8,
    "bandwidth_growth": 0.2,
    "ramp_s": 5e-5,
    "ramp_half_s": 2e-5,
}
DIRECT = RING | {"direct_fixed_s": 3e-6, "direct_hop_s": 1e-7, "direct_bandwidth_fraction": 0.5}
LINK_BYTES_PER_S = 450e9
forms = st.sampled_from([RING, DIRECT])
operations = st.sampled_from(sorted(WIRE_PASSES))
gpu_counts = st.sampled_from([2, 3, 4, 8, 16])


def seconds(constants, operation, gpus, message_bytes, link=LINK_BYTES_PER_S) -> float:
    return float(collective_seconds(constants, operation, link, as_floats(gpus), as_floats(message_bytes)).predicted_s)


@given(forms, operations, gpu_counts, st.integers(0, 2**32), st.integers(1, 2**32))
def test_larger_messages_are_never_faster(form, operation, gpus, message, more):
    assert seconds(form, operation, gpus, message + more) >= seconds(form, operation, gpus, message) * (1 - 1e-12)


@given(forms, operations, gpu_counts, st.integers(0, 2**32), st.floats(1, 20))
def test_a_faster_link_is_never_slower(form, operation, gpus, message, factor):
    base = seconds(form, operation, gpus, message)
    assert seconds(form, operation, gpus, message, LINK_BYTES_PER_S * factor) <= base * (1 + 1e-12)


@given(forms, operations, st.integers(1, 2**32))
def test_one_device_needs_no_collective(form, operation, message):
    assert seconds(form, operation, 1, message) == 0.0


def test_a_large_message_moves_at_the_sustained_rate_of_the_link():
    message = 2.0**34
    wire_s = 2 * 7 / 8 * message / (0.8 * LINK_BYTES_PER_S)
    assert wire_s < seconds(RING, "all_reduce", 8, message) < wire_s * 1.01
    assert seconds(RING, "all_gather", 8, message) < seconds(RING, "all_reduce", 8, message) / 1.9


def test_the_direct_kernel_serves_small_messages_only():
    small, large = 1024.0, 2.0**30
    assert seconds(DIRECT, "all_reduce", 8, small) < seconds(RING, "all_reduce", 8, small) / 2
    assert seconds(DIRECT, "all_reduce", 8, large) == seconds(RING, "all_reduce", 8, large)


def test_constants_are_checked():
    assert collective_constants_problem(DIRECT) is None
    assert "missing hop_s" in str(collective_constants_problem({k: v for k, v in RING.items() if k != "hop_s"}))
    assert "missing direct_hop_s" in str(
        collective_constants_problem({k: v for k, v in DIRECT.items() if k != "direct_hop_s"})
    )
    assert "no constant of this operation" in str(collective_constants_problem(RING | {"bogus": 1.0}))
