from dataclasses import replace

import numpy as np
import pytest
from machines import round_hardware, small_model

from codesign.capacity import candidates
from codesign.capacity.candidates import Service, candidates_on
from codesign.capacity.load import Objectives
from codesign.capacity.replica import Limits
from codesign.capacity.requests import Demand, Fixed, Requests
from codesign.capacity.screen import screen
from codesign.capacity.size import fewest_replicas, size
from codesign.capacity.size_present import detail_lines, machines_table, verdict
from codesign.cost.deployment import deploy, uniform_assignment
from codesign.errors import InfeasibleError
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting

MODEL = replace(small_model(blocks=8), name="llama-7b")
DEMAND = Demand(400.0, Fixed(500), Fixed(100))
SERVICE = Service(MODEL, DEMAND, Objectives(ttft_s=0.2, tpot_s=0.004), Limits(sequences_max=64), 0.03)


@pytest.fixture
def few_requests(monkeypatch):
    """Simulate fewer requests: the answer of either side is of the same ones."""
    monkeypatch.setattr(candidates, "REQUESTS_PER_REPLICA", 500)


def test_the_closed_form_is_near_the_simulation_and_never_far_above():
    """What one replica can serve: the simulated most lies between 0.7 and 1.1 of the closed form."""
    for hardware in (round_hardware(), round_hardware(peak_flop_per_s={"fp32": 20e12, "bf16": 60e12})):
        (one, *_) = candidates_on(hardware, SERVICE, Setting(), {})
        rate = one.screened.rate_per_s
        for share, enough in ((0.7, True), (1.15, False)):
            service = replace(SERVICE, demand=replace(DEMAND, rate_per_s=share * rate))
            assert (fewest_replicas(one, service, 1) == 1) == enough


def test_bottlenecks_bind_where_they_should():
    where = deploy(round_hardware(), MODEL, Setting())
    plain = uniform_assignment(where, parse_scheme("BF16"))
    tight = screen(where, plain, DEMAND, Objectives(tpot_s=0.0012), Limits())
    assert tight.bottleneck == "time per token"
    assert screen(where, plain, DEMAND, Objectives(), Limits(sequences_max=4)).bottleneck == "sequences"
    hopeless = screen(where, plain, DEMAND, Objectives(tpot_s=1e-5), Limits())
    assert hopeless.rate_per_s == 0.0
    assert hopeless.alone_tpot_s > 1e-5
    crowded = deploy(round_hardware(memory=replace(where.target.hardware.memory, capacity_bytes=4e9)), MODEL, Setting())
    assert screen(crowded, plain, DEMAND, Objectives(), Limits()).bottleneck == "memory for keys and values"


@pytest.mark.usefixtures("few_requests")
def test_the_cheapest_machine_wins_and_one_fewer_fails():
    cheap, dear = round_hardware(name="cheap"), round_hardware(name="dear", price_usd_per_hour=9.0)
    found = size([dear, cheap], SERVICE, Setting(), {})
    assert [one.candidate.hardware.name for one in found.by_machine] == ["cheap", "dear"]
    best = found.best
    assert best.load.meets(SERVICE.objectives)
    assert best.candidate.loss_nats.value <= 0.03
    assert best.fewer is None or not best.fewer.meets(SERVICE.objectives)
    assert found.cautious_replicas >= best.replicas
    assert best.usd_per_month == pytest.approx(2.0 * 730 * best.gpu_count)
    assert best.usd_per_million_tokens == pytest.approx(2.0 * best.gpu_count / 3600 / 40_000 * 1e6)
    assert found.runner_up is not None
    assert best.idle_watt <= best.load_watt.low
    assert "cheap" in verdict(found)
    assert len(machines_table(found).rows) == len(found.by_machine) + len(found.beaten)
    assert any("Bottlenecks" in line for line in detail_lines(SERVICE, found))


@pytest.mark.usefixtures("few_requests")
def test_no_cheaper_combination_would_have_done():
    """A brute search over every combination finds nothing cheaper that meets the objectives."""
    found = size([round_hardware()], SERVICE, Setting(), {})
    costs = []
    for one in candidates_on(round_hardware(), SERVICE, Setting(), {}):
        if one.screened.rate_per_s > 0:
            replicas = fewest_replicas(one, SERVICE, 100)
            costs += [] if replicas is None else [one.usd_per_month(replicas)]
    assert found.best.usd_per_month == min(costs)


@pytest.mark.usefixtures("few_requests")
def test_a_price_of_ones_own_changes_the_order():
    one, two = round_hardware(name="one"), round_hardware(name="two")
    found = size([one, two], SERVICE, Setting(), {"one": 5.0})
    assert found.best.candidate.hardware.name == "two"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"objectives": Objectives(tpot_s=1e-6)}, "--tpot-p95 1e-06 s cannot be met: a request alone takes"),
        ({"objectives": Objectives(ttft_s=1e-6)}, "--ttft-p95 1e-06 s cannot be met: a request alone takes"),
        ({"budget_usd_per_month": 10.0}, "stays within --budget-per-month 10. The cheapest is"),
    ],
)
def test_an_impossible_wish_names_what_fails_and_the_nearest_point(changes, why):
    with pytest.raises(InfeasibleError) as found:
        size([round_hardware()], replace(SERVICE, **changes), Setting(), {})
    assert why in str(found.value)


@pytest.mark.usefixtures("few_requests")
def test_a_machine_without_a_price_or_too_small_is_refused_and_the_others_go_on():
    free = round_hardware(name="free", price_usd_per_hour=None)
    small = round_hardware(name="small", peer_link=None)
    small = replace(small, memory=replace(small.memory, capacity_bytes=1e9))
    found = size([free, small, round_hardware()], SERVICE, Setting(), {})
    assert set(found.refused) == {"free", "small"}
    assert "--price free=USD" in found.refused["free"]
    assert "raise --max-quality-loss, or take machines with more memory" in found.refused["small"]


def test_a_log_is_sized_by_its_own_requests():
    log = Requests(np.linspace(0.0, 25.0, 1000), np.full(1000, 500), np.full(1000, 100))
    service = replace(SERVICE, trace=log)
    assert service.typical.rate_per_s == pytest.approx(40.0)
    assert len(service.share(4)) == 250
    best = size([round_hardware()], service, Setting(), {}).best
    assert best.load.request_count == 1000 // best.replicas * best.replicas
