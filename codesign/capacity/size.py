"""The cheapest machines that serve a load within its objectives: every candidate screened, the best ones simulated."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from codesign.capacity.candidates import HOURS_PER_MONTH, Candidate, Service, candidates_on, planned
from codesign.capacity.load import Fleet, Load, make_fleet, serve
from codesign.capacity.replica import make_replica
from codesign.capacity.requests import Demand
from codesign.capacity.step_table import End
from codesign.cost.energy import stage_energy_joule
from codesign.cost.inference import step_parts
from codesign.cost.money import TOKENS_PER_MILLION
from codesign.cost.prediction import Prediction, add_predictions, add_stages
from codesign.cost.step import Step
from codesign.errors import CapabilityError, InfeasibleError, InputError
from codesign.hardware.hardware import Hardware
from codesign.setting import Setting
from codesign.units import SECONDS_PER_HOUR

REPLICAS_MAX = 4_096
KEPT = 2  # deployments of a machine: the best and what it is compared with
HOPELESS = 8  # times as many replicas as the closed form asks for: then it is not their number that fails


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A candidate with the fewest replicas that meet the objectives in a simulation."""

    candidate: Candidate
    replicas: int

    @property
    def usd_per_month(self) -> float:
        """Return what they cost."""
        return self.candidate.usd_per_month(self.replicas)

    @property
    def gpu_count(self) -> int:
        """Return all devices."""
        return self.candidate.devices * self.replicas

    def rank(self) -> tuple[float, int, float]:
        """Return what is better the smaller it is: money, then schemes to make and to keep apart, then loss."""
        return self.usd_per_month, self.candidate.scheme_count, self.candidate.loss_nats.value


@dataclass(frozen=True, slots=True)
class Sized:
    """A candidate with the fewest replicas that meet the objectives in a simulation, and what that costs.

    `fewer` and `more` are the loads with one replica less (None if there is one) and one more. Energy counts idling.
    """

    candidate: Candidate
    replicas: int
    load: Load
    fewer: Load | None
    more: Load
    usd_per_month: float
    usd_per_million_tokens: float
    joule_per_token: Prediction
    idle_watt: float
    load_watt: Prediction

    @property
    def gpu_count(self) -> int:
        """Return all devices."""
        return self.candidate.devices * self.replicas


@dataclass(frozen=True, slots=True)
class Sizing:
    """The answer: the best of each machine, the cheapest first; `beaten` are other schemes on the best machine.

    `cautious_replicas` are as many of the best as it takes where every step lasts as long as the upper end of its
    interval, None if no number does. `refused` says of machines why they cannot serve it.
    """

    by_machine: tuple[Sized, ...]
    beaten: tuple[Sized, ...]
    cautious_replicas: int | None
    refused: Mapping[str, str]
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Sized:
        """Return the cheapest."""
        return self.by_machine[0]

    @property
    def runner_up(self) -> Sized | None:
        """Return the next in cost, on any machine."""
        others = sorted((*self.by_machine[1:], *self.beaten), key=lambda one: one.usd_per_month)
        return others[0] if others else None


def size(
    machines: Sequence[Hardware],
    service: Service,
    setting: Setting,
    prices: Mapping[str, float],
    report: Callable[[str], None] = lambda _: None,
) -> Sizing:
    """Return the cheapest deployment on each machine that meets every objective.

    InfeasibleError names the objective that fails and the nearest feasible point, where no machine can.
    """
    found: dict[str, list[Confirmed]] = {}
    refused: dict[str, str] = {}
    candidates: list[Candidate] = []
    for hardware in machines:
        report(f"{hardware.name}: screening")
        try:
            here = candidates_on(hardware, service, setting, prices)
        except (CapabilityError, InputError) as error:
            refused[hardware.name] = str(error)
            continue
        candidates += here
        feasible = [one for one in here if one.screened.rate_per_s > 0]
        if not feasible:
            refused[hardware.name] = why_not(here, service)
            continue
        kept = with_mix(confirmed(feasible, service, report), service, setting, report)
        if kept:
            found[hardware.name] = kept
        else:
            refused[hardware.name] = "The objectives fail in simulation although the closed form meets them."
    limit = math.inf if service.budget_usd_per_month is None else service.budget_usd_per_month
    firsts = sorted((kept[0] for kept in found.values()), key=lambda one: one.usd_per_month)
    affordable = [one for one in firsts if one.usd_per_month <= limit]
    if not affordable:
        raise InfeasibleError(nearest(firsts, refused, service))
    for one in firsts[len(affordable) :]:
        reason = f"The budget is too small: it takes ${one.usd_per_month:,.0f} a month."
        refused[one.candidate.hardware.name] = reason
    report("the best of each machine")
    best = found[affordable[0].candidate.hardware.name]
    beaten = [one for one in best[1:] if one.usd_per_month <= limit]
    return Sizing(
        by_machine=tuple(_sized(one, service) for one in affordable),
        beaten=tuple(_sized(one, service) for one in beaten),
        cautious_replicas=fewest_replicas(best[0].candidate, service, REPLICAS_MAX, "high_s"),
        refused=refused,
        candidates=tuple(candidates),
    )


# --- simulation ---


def confirmed(candidates: Sequence[Candidate], service: Service, report: Callable[[str], None]) -> list[Confirmed]:
    """Return the two cheapest candidates by simulation, the cheapest first; where two cost the same, the simpler.

    Candidates are tried in the order of the least that they can cost, until none of the rest can be cheaper.
    """
    rate = service.typical.rate_per_s

    def least(one: Candidate) -> tuple[float, int, float]:
        return one.usd_per_month(one.replicas_at_least(rate)), one.scheme_count, one.loss_nats.value

    kept: list[Confirmed] = []
    for one in sorted(candidates, key=least):
        if len(kept) == KEPT and least(one)[0] >= kept[-1].usd_per_month:
            break
        report(f"{one.hardware.name}: {one.scheme}, KV cache {one.assignment.kv.name}, {one.devices} devices a replica")
        most = REPLICAS_MAX if len(kept) < KEPT else math.ceil(kept[-1].usd_per_month / one.usd_per_month(1)) - 1
        replicas = fewest_replicas(one, service, most)
        if replicas is not None:
            kept = sorted([*kept, Confirmed(one, replicas)], key=Confirmed.rank)[:KEPT]
    return kept


def with_mix(
    kept: list[Confirmed], service: Service, setting: Setting, report: Callable[[str], None]
) -> list[Confirmed]:
    """Return the deployments with a mix of schemes among them, if one is cheaper than the best single scheme."""
    mix = planned(kept[0].candidate, service, setting) if kept else None
    if mix is None or mix.screened.rate_per_s <= 0:
        return kept
    return confirmed([mix, *(one.candidate for one in kept)], service, report)


def fewest_replicas(one: Candidate, service: Service, most: int, end: End = "predicted_s") -> int | None:
    """Return the fewest replicas that meet the objectives, None if `most` do not; more replicas never do worse.

    All replicas get requests alike, so that one stands for all. `end` chooses the end of the interval of steps.
    """
    replica = make_replica(one.where, one.assignment, service.context_max, one.limits, end)
    if replica is None:
        return None
    fleet = Fleet(replica, replica, replica, 1)

    def meets(replicas: int) -> bool:
        load = serve(service.share(replicas), fleet, service.objectives, middle_only=True)
        return load.meets(service.objectives)

    least = one.replicas_at_least(service.typical.rate_per_s)
    low, high = least - 1, least
    while not meets(high):
        low, high = high, max(high + 1, math.ceil(high * 1.25))
        if high > most or high > HOPELESS * least:
            return None
    while high > 1 and low == high - 1 and low < least and meets(low):
        low, high = low - 1, low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _sized(found: Confirmed, service: Service) -> Sized:
    one, replicas, typical = found.candidate, found.replicas, service.typical
    fleet = make_fleet(one.where, one.assignment, service.context_max, one.limits, 1)
    assert fleet is not None
    counts = [count for count in (replicas - 1, replicas, replicas + 1) if count]
    loads = {count: serve(service.share(count), fleet, service.objectives).times(count) for count in counts}
    load = loads[replicas]
    joule = energy_per_token(one, load, typical)
    tokens_per_s = typical.rate_per_s * typical.output.mean_tokens
    idle_watt = one.hardware.power.idle_watt * one.devices * replicas
    idle_joule = idle_watt * (1.0 - min(load.busy_share.value, 1.0)) / tokens_per_s
    joule = Prediction(joule.value + idle_joule, joule.low + idle_joule, joule.high + idle_joule, joule.origin)
    usd = found.usd_per_month
    return Sized(
        candidate=one,
        replicas=replicas,
        load=load,
        fewer=loads.get(replicas - 1),
        more=loads[replicas + 1],
        usd_per_month=usd,
        usd_per_million_tokens=usd / HOURS_PER_MONTH / SECONDS_PER_HOUR / tokens_per_s * TOKENS_PER_MILLION,
        joule_per_token=joule,
        idle_watt=idle_watt,
        load_watt=joule.scaled(tokens_per_s),
    )


def energy_per_token(one: Candidate, load: Load, demand: Demand) -> Prediction:
    """Return joules per output token while busy: a decode step shared by those in flight, and the part of a prompt."""
    prompt = max(1, round(demand.prompt.mean_tokens - demand.shared_prefix_tokens))
    output = demand.output.mean_tokens
    in_flight = max(1.0, load.mean_in_flight.value / load.replica_count / one.limits.pipeline)
    steps = (
        (Step(round(in_flight), 1, demand.prompt.mean_tokens + output / 2), 1.0 / round(in_flight)),
        (Step(1, prompt, round(demand.prompt.mean_tokens)), 1.0 / output),
    )
    hardware = one.hardware
    return add_predictions(
        stage_energy_joule(
            hardware, add_stages(step_parts(one.where, one.assignment, step).values()), one.where.target.gpu_count
        ).scaled(share)
        for step, share in steps
    )


# --- what fails ---


def why_not(candidates: Sequence[Candidate], service: Service) -> str:
    """Return which objective fails on one machine, and the nearest that can be met."""
    if not candidates:
        return (
            "Nothing with a known loss within "
            f"{service.max_loss_nats:g} nats fits: raise --max-quality-loss, or take machines with more memory."
        )
    objectives = service.objectives
    parts = []
    for name, limit, least in (
        ("--ttft-p95", objectives.ttft_s, min(one.screened.alone_ttft_s for one in candidates)),
        ("--tpot-p95", objectives.tpot_s, min(one.screened.alone_tpot_s for one in candidates)),
    ):
        if limit is not None and least > limit:
            parts.append(f"{name} {limit:g} s cannot be met: a request alone takes {least:.3g} s at best")
    return "; ".join(parts) + "." if parts else "No single scheme meets all objectives at once, even for one request."


def nearest(firsts: Sequence[Confirmed], refused: Mapping[str, str], service: Service) -> str:
    """Return the sentence of an infeasible question; `firsts` are the cheapest of each machine, whatever they cost."""
    if firsts:
        cheapest = firsts[0]
        return (
            f"No deployment stays within --budget-per-month {service.budget_usd_per_month:,.0f}. The cheapest is "
            f"{cheapest.gpu_count} x {cheapest.candidate.hardware.name} for ${cheapest.usd_per_month:,.0f} a month."
        )
    reasons = " ".join(f"{name}: {reason}" for name, reason in refused.items())
    return f"No machine serves this within its objectives. {reasons}"
