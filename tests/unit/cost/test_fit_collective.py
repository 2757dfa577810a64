from dataclasses import replace

import numpy as np
import pytest

from codesign.cost.collective_time import collective_constants_problem, collective_seconds
from codesign.cost.fit_collective import CollectiveRows, fit_collective
from codesign.errors import InputError

TRUTH = {
    "fixed_s": 7e-6,
    "hop_s": 1.2e-6,
    "bandwidth_fraction": 0.9,
    "bandwidth_growth": 0.2,
    "ramp_s": 5e-5,
    "ramp_half_s": 3e-5,
    "direct_fixed_s": 2.6e-6,
    "direct_hop_s": 1e-7,
    "direct_bandwidth_fraction": 0.6,
}
LINK_BYTES_PER_S = 450e9


def rows(constants) -> CollectiveRows:
    gpus = np.repeat([2.0, 4.0, 8.0], 21)
    message = np.tile(2.0 ** np.arange(9, 30), 3)
    seconds = collective_seconds(constants, "all_reduce", LINK_BYTES_PER_S, gpus, message).predicted_s
    return CollectiveRows(gpus, message, seconds * np.exp(np.random.default_rng(4).normal(0, 0.02, len(gpus))))


@pytest.fixture(scope="module")
def fitted():
    return fit_collective(rows(TRUTH), "all_reduce", LINK_BYTES_PER_S)


def test_both_kernels_are_found(fitted):
    assert collective_constants_problem(fitted.constants) is None
    assert fitted.constants["direct_fixed_s"] == pytest.approx(2.6e-6, rel=0.1)
    assert 0.0 < fitted.error_fraction < 0.06
    assert fitted.fit_range["gpus"] == (2.0, 8.0)


def test_a_ring_alone_gets_no_direct_kernel():
    ring = {name: value for name, value in TRUTH.items() if not name.startswith("direct")}
    assert "direct_fixed_s" not in fit_collective(rows(ring), "all_reduce", LINK_BYTES_PER_S).constants


def test_the_order_of_the_rows_does_not_matter(fitted):
    shuffled = rows(TRUTH).take(np.random.default_rng(1).permutation(63))
    assert fit_collective(shuffled, "all_reduce", LINK_BYTES_PER_S) == fitted


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gpus": np.ones(63)}, "gpus: a value is not within"),
        ({"seconds": np.full(63, np.nan)}, "seconds: a value is not within"),
        ({"message_bytes": np.ones(5)}, "differ in length"),
    ],
)
def test_absurd_rows_are_refused(change, expected):
    with pytest.raises(InputError, match=expected):
        fit_collective(replace(rows(TRUTH), **change), "all_reduce", LINK_BYTES_PER_S)


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="too few"):
        fit_collective(rows(TRUTH).take(np.arange(8)), "all_reduce", LINK_BYTES_PER_S)
