import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_tables import Stepwise, even_table

from codesign.capacity.requests import Demand, Fixed, Lognormal, Requests, draw_requests
from codesign.capacity.server import HostTimes, Server
from codesign.capacity.simulate import simulate, simulate_closed
from codesign.errors import InputError

TABLE = even_table()


def requests_of(*rows: tuple[float, int, int]) -> Requests:
    arrival, prompt, output = zip(*rows, strict=True)
    return Requests(np.array(arrival, dtype=float), np.array(prompt), np.array(output))


@st.composite
def loads(draw: st.DrawFn) -> tuple[Requests, Server]:
    """Return requests that crowd a small cache, and its server."""
    count = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.floats(0.0, 0.02), min_size=count, max_size=count))
    prompts = draw(st.lists(st.integers(1, 90), min_size=count, max_size=count))
    outputs = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    server = Server(
        capacity_blocks=draw(st.integers(10, 40)),
        sequences_max=draw(st.integers(1, 12)),
        step_tokens=draw(st.sampled_from([16, 64, 8192])),
        prefill_first=draw(st.booleans()),
        overlap=draw(st.booleans()),
    )
    return Requests(np.cumsum(gaps), np.array(prompts), np.array(outputs)), server


@given(loads())
def test_skipping_steps_changes_nothing(load):
    """Every time and every preemption is that of a simulation that takes one step after the other."""
    requests, server = load
    found, expected = simulate(requests, TABLE, server), Stepwise(requests, TABLE, server).run()
    assert found.finish_s == pytest.approx(expected.finish, rel=1e-9)
    assert found.first_token_s == pytest.approx(expected.first, rel=1e-9)
    assert found.preemptions.tolist() == expected.preemptions
    assert found.peak_blocks == expected.peak


@given(loads())
def test_what_comes_in_goes_out_once(load):
    """No request is lost or served twice, no token made twice, no block beyond the cache; times are in order."""
    requests, server = load
    found = simulate(requests, TABLE, server)
    assert found.done.all()
    made = found.decode_token_steps + len(requests) + found.preemptions.sum()
    assert made == requests.output_tokens.sum()
    assert found.peak_blocks <= server.capacity_blocks
    assert (found.arrival_s <= found.scheduled_s).all()
    assert (found.scheduled_s < found.first_token_s).all()
    assert (found.first_token_s <= found.finish_s).all()
    assert found.busy_s <= found.duration_s * (1 + 1e-12)
    assert (found.occupancy <= 1).all()


def waits_s(arrival_s: np.ndarray, service_s: float) -> np.ndarray:
    """Return how long each waits for those before it: the queue's work, kept above zero (Lindley's recursion)."""
    work = np.concatenate(([0.0], np.cumsum(service_s - np.diff(arrival_s))))
    return work - np.minimum.accumulate(work)


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_one_after_another_is_the_queue_with_fixed_service(rho):
    """One sequence at a time and one token each: Poisson arrivals wait rho S / (2 (1 - rho)) on average (M/D/1)."""
    server = Server(capacity_blocks=1000, sequences_max=1)
    service_s = TABLE.mixed_s(0, 0.0, [(100, 100)])
    requests = draw_requests(Demand(rho / service_s, Fixed(100), Fixed(1)), 200_000, seed=1)
    expected_s = waits_s(requests.arrival_s, service_s)
    assert expected_s.mean() == pytest.approx(rho * service_s / (2 * (1 - rho)), rel=0.02)
    found = simulate(requests.part(slice(20_000)), TABLE, server)
    assert found.queue_s == pytest.approx(expected_s[:20_000], abs=1e-6 * service_s)


def test_a_full_server_makes_as_many_tokens_as_its_steps_allow():
    """Everything at once and 64 at a time: outputs per second are 64 over the seconds of a step."""
    server = Server(capacity_blocks=10_000, sequences_max=64)
    table = even_table(token_s=0.0, context_s=0.0)
    found = simulate(requests_of(*[(0.0, 16, 500)] * 6400), table, server)
    step_s = table.decode(64, 300.0)[0]
    assert 6400 * 500 / found.duration_s == pytest.approx(64 / step_s, rel=0.01)


def test_a_request_alone_takes_its_prompt_and_its_steps():
    table = even_table(context_s=0.0)
    found = simulate(requests_of((5.0, 100, 11)), table, Server(100))
    first_s = table.mixed_s(0, 0.0, [(100, 100)])
    assert found.ttft_s[0] == pytest.approx(first_s)
    assert found.tpot_s[0] == pytest.approx(table.decode(1, 100.0)[0])
    assert (found.step_count, found.queue_s[0]) == (11, 0.0)


def test_prompts_longer_than_a_step_are_read_in_parts():
    found = simulate(requests_of((0.0, 100, 1)), TABLE, Server(100, step_tokens=40))
    parts = [TABLE.mixed_s(0, 0.0, [(new, cached)]) for new, cached in ((40, 40), (40, 80), (20, 100))]
    assert found.ttft_s[0] == pytest.approx(sum(parts))


def test_prompts_first_keep_others_waiting():
    """With prompts in steps of their own, a request that decodes makes no token while another's prompt is read."""
    both = requests_of((0.0, 16, 50), (0.01, 8000, 2))
    shared, apart = (simulate(both, TABLE, Server(10_000, prefill_first=first)) for first in (False, True))
    assert apart.finish_s[0] - shared.finish_s[0] == pytest.approx(TABLE.decode(1, 50)[0], rel=0.5)
    assert apart.first_token_s[1] <= shared.first_token_s[1]


def test_a_request_larger_than_the_cache_is_left_out():
    found = simulate(requests_of((0.0, 16, 16), (0.0, 800, 16), (0.0, 16, 16)), TABLE, Server(20))
    assert found.done.tolist() == [True, False, True]
    assert len(found.ttft_s) == 2


def test_a_shared_prefix_is_read_and_kept_once():
    """From the second request on only the rest of the prompt is computed, and only the rest takes blocks."""
    rows = requests_of((0.0, 1000, 2), (1.0, 1000, 2))
    plain, shared = (simulate(rows, TABLE, Server(200, shared_prefix_tokens=tokens)) for tokens in (0, 800))
    assert shared.ttft_s[0] == plain.ttft_s[0]
    assert shared.ttft_s[1] == pytest.approx(TABLE.mixed_s(0, 0.0, [(200, 1000)]))
    crowd = requests_of(*[(0.0, 1000, 2)] * 8)
    assert simulate(crowd, TABLE, Server(200, shared_prefix_tokens=800)).peak_blocks == 50 + 8 * 13
    assert simulate(crowd, TABLE, Server(200)).peak_blocks <= 200


def test_the_host_takes_requests_in_one_by_one_and_every_step_its_time():
    host = HostTimes(request_s=0.5, step_s=0.1, sequence_s=0.01)
    rows = requests_of((0.0, 16, 3), (0.0, 16, 3))
    found = simulate(rows, TABLE, Server(100, host=host))
    step_s = TABLE.decode(1, 20)[0] + 0.1 + 0.01
    assert found.queue_s == pytest.approx([0.5, 1.0])
    assert found.tpot_s == pytest.approx([step_s, step_s], rel=1e-3)


def test_a_client_keeps_its_requests_in_flight():
    """Each end lets the next request come; all are served and never more than eight are there."""
    drawn = draw_requests(Demand(1.0, Lognormal(100, 0.5), Lognormal(50, 0.5)), 200, seed=3)
    found = simulate_closed(drawn, TABLE, Server(10_000), in_flight=8)
    assert found.done.all()
    edges = sorted([(t, 1) for t in found.arrival_s] + [(t, -1) for t in found.finish_s])
    level, highest = 0, 0
    for _, change in sorted(edges, key=lambda edge: (edge[0], edge[1])):
        level += change
        highest = max(highest, level)
    assert highest == 8
    with pytest.raises(InputError, match="serve nobody"):
        simulate_closed(drawn, TABLE, Server(100), in_flight=0)


def test_equal_seeds_give_equal_answers():
    demand = Demand(30.0, Lognormal(200, 1.0), Lognormal(60, 1.0), variation=2.0)
    one, two = (simulate(draw_requests(demand, 500, 7), TABLE, Server(900)) for _ in range(2))
    assert np.array_equal(one.finish_s, two.finish_s)
    other = simulate(draw_requests(demand, 500, 8), TABLE, Server(900))
    assert not np.array_equal(one.finish_s, other.finish_s)


def test_a_floor_of_steps_holds_where_a_host_issues_kernels():
    slow = replace(TABLE, floor_s=0.02)
    found = simulate(requests_of((0.0, 16, 101)), slow, Server(100))
    assert found.tpot_s[0] == pytest.approx(0.02)
    assert math.isclose(found.ttft_s[0], 0.02)
