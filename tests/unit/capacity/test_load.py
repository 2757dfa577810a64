from dataclasses import replace

import numpy as np
import pytest
from step_tables import even_table

from codesign.capacity.load import Fleet, Objectives, knee, serve
from codesign.capacity.load_curve import at_rate, load_curve, spread_rates
from codesign.capacity.replica import Replica
from codesign.capacity.requests import Demand, Fixed, draw_requests
from codesign.capacity.server import Server


def fleet(count: int = 1, sequences: int = 32) -> Fleet:
    server = Server(4000, sequences_max=sequences)
    replicas = (Replica(server, even_table(step_s=seconds), 64_000) for seconds in (1e-2, 8e-3, 1.3e-2))
    return Fleet(*replicas, count)


DRAWN = draw_requests(Demand(1.0, Fixed(100), Fixed(50)), 3000, seed=0)


def test_percentiles_lie_in_their_order_and_intervals():
    load = serve(at_rate(DRAWN, 20.0), fleet(), Objectives())
    for figures in load.percentiles.values():
        values = [figures[percent].value for percent in (50, 90, 95, 99)]
        assert values == sorted(values)
        assert all(one.low <= one.value <= one.high for one in figures.values())
    assert load.rate_per_s == pytest.approx(20.0, rel=0.05)
    assert load.output_tokens_per_s.value == pytest.approx(20.0 * 50, rel=0.05)
    assert load.goodput_per_s.value == pytest.approx(20.0, rel=0.05)


def test_two_replicas_at_twice_the_rate_serve_alike():
    one = serve(at_rate(DRAWN, 20.0), fleet(1), Objectives())
    two = serve(at_rate(DRAWN, 40.0), fleet(2), Objectives())
    assert two.p95("tpot_s").value == pytest.approx(one.p95("tpot_s").value, rel=0.1)
    assert two.output_tokens_per_s.value == pytest.approx(2 * one.output_tokens_per_s.value, rel=0.05)


def test_goodput_counts_requests_that_met_every_objective():
    load = serve(at_rate(DRAWN, 20.0), fleet(), Objectives(ttft_s=1e-9))
    assert load.goodput_per_s.value == 0.0
    assert not load.meets(Objectives(ttft_s=1e-9))
    assert load.meets(Objectives(ttft_s=10.0, tpot_s=10.0, e2e_s=100.0))


def test_an_overloaded_server_is_found_and_a_busy_one_is_not():
    """32 sequences at 10 ms and 50 tokens make at most about 60 requests per second."""
    assert not serve(at_rate(DRAWN, 40.0), fleet(), Objectives()).overloaded
    crowded = serve(at_rate(DRAWN, 90.0), fleet(), Objectives())
    assert crowded.overloaded
    assert crowded.served_per_s.value < 70
    assert not crowded.meets(Objectives(tpot_s=10.0))


def test_a_curve_finds_the_knee_and_the_last_good_rate():
    curve = load_curve(DRAWN, spread_rates(5, 80, 6), fleet(), Objectives(ttft_s=0.2))
    assert [one.overloaded for one in curve.loads] == [False, False, False, False, True, True]
    assert curve.best_index == 3
    assert curve.knee_index == 2  # 20 ms up to here, then 79 ms, then seconds
    assert load_curve(DRAWN, (5.0,), fleet(), Objectives(ttft_s=1e-6)).best_index is None


def test_the_knee_of_a_corner_is_the_corner():
    rates = np.arange(1.0, 11.0)
    latency_s = np.where(rates <= 7, 0.1, 0.1 * 10 ** (rates - 7))
    assert knee(rates, latency_s) == 6
    assert knee(rates, np.full(10, 0.1)) == 9


def test_shares_stay_within_a_replica():
    load = serve(at_rate(DRAWN, 200.0), fleet(), Objectives())
    assert 0 < load.kv_peak_share.value <= 1
    assert 0 < load.busy_share.value <= 1
    assert all(0 <= share <= 1 for share in load.kv_share_over_time)
    pipelined = replace(fleet(), value=replace(fleet().value, streams=2))
    assert pipelined.streams == 2
