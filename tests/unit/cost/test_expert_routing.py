import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.cost.arrays import as_floats
from codesign.cost.expert_routing import TILE_ROWS, Routing, busiest_device

# experts, top_k, devices
BLOCKS = ((8, 2, 1), (8, 2, 8), (128, 4, 16), (384, 8, 32), (512, 22, 1), (10, 3, 4), (6, 6, 1))
skews = st.sampled_from([0.0, 0.5, 1.0, 1.01, 1.2, 3.0])


def routing(tokens: float, experts: float, top_k: float, skew: float, devices: float) -> Routing:
    return busiest_device(*(as_floats(number) for number in (tokens, experts, top_k, skew, devices)))


@given(st.integers(1, 20_000), st.sampled_from(BLOCKS), skews)
def test_rows_hits_and_tiles_belong_together(tokens, block, skew):
    experts, top_k, devices = block
    found = routing(tokens, experts, top_k, skew, devices)
    assert tokens * top_k / devices - 1e-9 <= found.rows <= tokens * top_k + 1
    assert 0 < found.hit <= min(np.ceil(experts / devices), found.rows) + 1e-9
    for height, tiles in zip(TILE_ROWS, found.tiles, strict=True):
        assert max(found.hit, found.rows / height) - 1e-9 <= tiles <= found.rows / height + found.hit + 1e-9


@given(st.integers(1, 20_000), st.sampled_from([block for block in BLOCKS if block[2] == 1]), skews)
def test_one_device_gets_every_row_and_no_expert_more_than_all_tokens(tokens, block, skew):
    experts, top_k, devices = block
    found = routing(tokens, experts, top_k, skew, devices)
    assert found.rows == pytest.approx(tokens * top_k)
    assert found.hit >= top_k * (1 - 1e-12)


@pytest.mark.parametrize(("tokens", "devices"), [(16, 1), (16, 8), (48, 4), (1024, 16), (3, 1)])
def test_balanced_routing_counts_what_strided_choices_count(tokens, devices):
    # Independent count: choice i of token t is expert t + 16 i of 128, in turn (8 choices).
    chosen = (np.arange(tokens)[:, None] + 16 * np.arange(8)) % 128
    per_expert = np.bincount(chosen.ravel(), minlength=128).reshape(devices, -1)
    busiest = per_expert[per_expert.sum(axis=1).argmax()]
    found = routing(tokens, 128, 8, 0.0, devices)
    assert found.rows == busiest.sum()
    assert found.hit == (busiest > 0).sum()
    assert found.tiles.tolist() == [np.ceil(busiest / height).sum() for height in TILE_ROWS]


def test_skew_loads_the_busiest_device_and_leaves_experts_idle():
    even, skewed = (routing(64, 256, 8, skew, 16) for skew in (0.0, 1.01))
    assert skewed.rows > 1.3 * even.rows
    assert routing(64, 256, 8, 1.01, 1).hit < 0.9 * routing(64, 256, 8, 0.0, 1).hit


def test_arrays_broadcast_and_equal_single_cases():
    tokens, skew = np.array([[1.0], [64.0], [4096.0]]), np.array([[0.0, 1.2]])
    found = busiest_device(tokens, as_floats(64), as_floats(4), skew, as_floats(8))
    assert found.rows.shape == found.hit.shape == (3, 2)
    assert found.tiles.shape == (len(TILE_ROWS), 3, 2)
    assert found.tiles[:, 2, 1].tolist() == routing(4096, 64, 4, 1.2, 8).tiles.tolist()
