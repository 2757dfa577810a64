"""What could serve a load: every scheme, KV format and number of devices of a machine, screened in closed form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from codesign.capacity.load import Objectives
from codesign.capacity.load_curve import at_rate
from codesign.capacity.replica import Limits
from codesign.capacity.requests import Demand, Fixed, Requests, draw_requests
from codesign.capacity.screen import Screened, screen
from codesign.cost.deployment import Assignment, Deployment, deploy, uniform_assignment
from codesign.cost.prediction import Prediction, add_predictions
from codesign.cost.serving import MEMORY_SHARE
from codesign.cost.workload import Workload
from codesign.errors import CapabilityError, InputError
from codesign.hardware.hardware import Hardware
from codesign.model.layers import Model
from codesign.plan.explain import scheme_mix
from codesign.plan.planner import Choices, build_problem, gather_costs
from codesign.plan.problem import Criterion
from codesign.plan.solve import solve
from codesign.quality.table import QualityTable, table_from_prior
from codesign.schemes.capability import candidate_kv_formats, candidate_schemes
from codesign.schemes.kv import KvFormat
from codesign.schemes.scheme import Scheme
from codesign.setting import DEFAULT_MAX_LOSS_NATS, Setting

DEVICES = (1, 2, 4, 8)  # of one machine, in tensor parallel
STAGES = (1, 2, 4)  # machines in a pipeline, tried only where fewer cannot hold the model
HOURS_PER_MONTH = 730.0
REQUESTS_PER_REPLICA = 2_000
SLACK = 1.1  # by how much the closed form may be too pessimistic


@dataclass(frozen=True, slots=True)
class Service:
    """What is to be served: a model, its requests, what users are promised, what may be lost and spent.

    A trace goes before the demand.
    """

    model: Model
    demand: Demand
    objectives: Objectives
    limits: Limits
    max_loss_nats: float = DEFAULT_MAX_LOSS_NATS
    budget_usd_per_month: float | None = None
    seed: int = 0
    trace: Requests | None = None

    @property
    def typical(self) -> Demand:
        """Return the demand with the mean lengths and rate that really come."""
        if self.trace is None:
            return self.demand
        prompt, output = (
            Fixed(max(1, round(float(column.mean()))))
            for column in (self.trace.prompt_tokens, self.trace.output_tokens)
        )
        rate = len(self.trace) / max(self.trace.duration_s, 1.0)
        return replace(self.demand, rate_per_s=rate, prompt=prompt, output=output)

    def share(self, replicas: int) -> Requests:
        """Return the requests that reach one of so many replicas, which get them in turn.

        Every k-th of requests whose gaps are gamma distributed comes after k gaps, a gamma of k times the shape.
        """
        if self.trace is not None:
            return self.trace.part(slice(None, None, replicas))
        thinned = replace(self.demand, rate_per_s=1.0, variation=self.demand.variation * replicas**-0.5)
        drawn = draw_requests(thinned, REQUESTS_PER_REPLICA, self.seed)
        return at_rate(drawn, self.demand.rate_per_s / replicas)

    @property
    def context_max(self) -> int:
        """Return the tokens of the longest request."""
        requests = self.share(1)
        return int((requests.prompt_tokens + requests.output_tokens).max())


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scheme and a KV format on so many devices of a machine, with what one replica does by the closed form."""

    where: Deployment
    assignment: Assignment
    scheme: str
    limits: Limits
    loss_nats: Prediction
    screened: Screened
    price_usd_per_hour: float

    @property
    def devices(self) -> int:
        """Return the devices of a replica."""
        return self.where.target.gpu_count * self.limits.pipeline

    @property
    def scheme_count(self) -> int:
        """Return how many schemes it takes."""
        return len(set(self.assignment.schemes))

    @property
    def hardware(self) -> Hardware:
        """Return the machine."""
        return self.where.target.hardware

    def replicas_at_least(self, rate_per_s: float) -> int:
        """Return how many replicas the closed form asks for at the very least."""
        return max(1, math.ceil(rate_per_s / (self.screened.rate_per_s * SLACK)))

    def usd_per_month(self, replicas: int) -> float:
        """Return what so many replicas cost."""
        return self.price_usd_per_hour * self.devices * replicas * HOURS_PER_MONTH


def candidates_on(
    hardware: Hardware, service: Service, setting: Setting, prices: Mapping[str, float]
) -> tuple[Candidate, ...]:
    """Return every scheme, KV format and number of devices whose loss is known and within what may be lost."""
    price = prices.get(hardware.name, hardware.price_usd_per_hour)
    if price is None:
        raise InputError(f"{hardware.name} has no price in its profile; give --price {hardware.name}=USD per hour.")
    schemes = candidate_schemes(hardware, setting.library)
    formats = candidate_kv_formats(hardware, setting.library)
    quality = table_from_prior(service.model, schemes, formats, setting.method)
    found: list[Candidate] = []
    for stages in STAGES if hardware.kind == "gpu" else STAGES[:1]:
        staged = replace(service, limits=replace(service.limits, pipeline=stages))
        for devices in DEVICES if hardware.peer_link is not None else DEVICES[:1]:
            where = deploy(hardware, service.model, replace(setting, gpu_count=devices))
            pairs = ((scheme, kv) for scheme in schemes for kv in formats)
            found += filter(None, (_candidate(where, scheme, kv, quality, staged, price) for scheme, kv in pairs))
        if found:
            break
    return tuple(found)


def _candidate(
    where: Deployment,
    scheme: Scheme,
    kv: KvFormat,
    quality: QualityTable,
    service: Service,
    price: float,
) -> Candidate | None:
    """Return the candidate with what a replica does; None if it cannot run, does not fit, or loses too much."""
    try:
        assignment = uniform_assignment(where, scheme, kv.name)
    except CapabilityError:
        return None
    loss = _loss(quality, assignment)
    if loss is None or loss.value > service.max_loss_nats:
        return None
    found = screen(where, assignment, service.typical, service.objectives, service.limits)
    if found is None:
        return None
    return Candidate(where, assignment, scheme.name, service.limits, loss, found, price)


def _loss(quality: QualityTable, assignment: Assignment) -> Prediction | None:
    """Return the loss of all groups and the cache together, None if any is unknown."""
    groups = zip(assignment.groups, assignment.schemes, strict=True)
    cells = [quality.group_loss(group.key, scheme.name) for group, scheme in groups]
    cells.append(quality.kv_loss(assignment.kv.name))
    known = [cell for cell in cells if cell is not None]
    return add_predictions(known) if len(known) == len(cells) else None


def planned(best: Candidate, service: Service, setting: Setting) -> Candidate | None:
    """Return the mix of schemes that serves the batch of the best single scheme fastest, None if it is no mix."""
    where = replace(best.where, workload=_workload(best, service))
    schemes = candidate_schemes(best.hardware, setting.library)
    formats = candidate_kv_formats(best.hardware, setting.library)
    quality = table_from_prior(service.model, schemes, formats, setting.method)
    costs = gather_costs(where, Choices(schemes, formats, quality))
    budgets = {Criterion.QUALITY: service.max_loss_nats, Criterion.MEMORY: where.capacity_bytes * MEMORY_SHARE}
    assignment = costs.assignment(solve(build_problem(where, costs), Criterion.THROUGHPUT, budgets))
    if len(set(assignment.schemes)) == 1:
        return None
    mix = scheme_mix(np.array([group.weight_count for group in assignment.groups]), assignment.schemes)
    found = screen(where, assignment, service.typical, service.objectives, service.limits)
    loss = _loss(quality, assignment)
    return (
        None
        if found is None or loss is None
        else replace(best, assignment=assignment, scheme=mix, loss_nats=loss, screened=found)
    )


def _workload(best: Candidate, service: Service) -> Workload:
    """Return what a replica does at the rate that it is screened for."""
    demand, screened = service.typical, best.screened
    rates = screened.batch_rates_per_s
    batch = float(np.interp(screened.rate_per_s, rates, screened.batches))
    return Workload(max(1, round(batch)), round(demand.prompt.mean_tokens), round(demand.output.mean_tokens))
