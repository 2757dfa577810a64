"""A question about load: which machines with which schemes, what requests, what users are promised."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from codesign.capacity.load import Fleet, Load, Objectives, make_fleet, serve
from codesign.capacity.load_curve import LoadCurve, load_curve
from codesign.capacity.replica import Limits
from codesign.capacity.requests import Demand, Requests, draw_requests
from codesign.cost.deployment import Assignment, Deployment, deploy, uniform_assignment
from codesign.errors import CapabilityError, InputError
from codesign.hardware.hardware import Hardware
from codesign.model.groups import fused_groups
from codesign.model.layers import Model
from codesign.plan.file import Plan
from codesign.plan.recipes.make import planned_choices
from codesign.schemes.capability import baseline_scheme
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv
from codesign.setting import Setting


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks; without a plan `scheme` is used wherever it can be, 16 bits without a name.

    A trace goes before demand and rates. With `choose_tensor_parallel` a replica gets the fewest devices that hold it.
    """

    hardware: Hardware
    model: Model
    setting: Setting
    plan: Plan | None
    scheme: str
    gpu_count: int
    choose_tensor_parallel: bool
    limits: Limits
    objectives: Objectives
    demand: Demand
    trace: Requests | None
    rates_per_s: tuple[float, ...]
    request_count: int
    seed: int

    @property
    def drawn(self) -> Requests:
        """Return the requests, those of the demand at one per second."""
        if self.trace is not None:
            return self.trace
        return draw_requests(replace(self.demand, rate_per_s=1.0), self.request_count, self.seed)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its fleet: `gpus_per_replica` devices each, `fleet.count` replicas, `left_over` devices idle."""

    asked: Asked
    where: Deployment
    assignment: Assignment
    scheme: str
    fleet: Fleet
    gpus_per_replica: int
    left_over: int

    def answer(self, report: Callable[[Load], None] = lambda _: None) -> LoadCurve:
        """Simulate and return the loads, one for a trace or a single rate."""
        asked = self.asked
        if asked.trace is not None:
            load = serve(asked.trace, self.fleet, asked.objectives)
            return LoadCurve((load,), 0, 0 if asked.objectives.named and load.meets(asked.objectives) else None)
        return load_curve(asked.drawn, asked.rates_per_s, self.fleet, asked.objectives, report)

    def described(self) -> dict[str, object]:
        """Return the question as plain values for JSON."""
        asked = self.asked
        return {
            "hardware": self.where.target.hardware.name,
            "model": self.where.model.name,
            "library": self.where.target.library,
            "scheme": self.scheme,
            "kv": self.assignment.kv.name,
            "gpus": asked.gpu_count,
            "gpus_per_replica": self.gpus_per_replica,
            "replicas": self.fleet.count,
            "cache_tokens_per_replica": self.fleet.value.capacity_tokens * self.fleet.value.streams,
            "limits": asked.limits,
            "objectives": asked.objectives,
            "demand": asked.demand if asked.trace is None else None,
            "requests": asked.request_count if asked.trace is None else len(asked.trace),
            "seed": asked.seed,
        }


def ask(asked: Asked) -> Question:
    """Return the question with its fleet.

    InputError for a plan of another model or requests beyond the model's context, CapabilityError where not even one
    replica of all devices holds the model.
    """
    context_max = _context_max(asked)
    for devices in _devices_to_try(asked):
        where = deploy(asked.hardware, asked.model, replace(asked.setting, gpu_count=devices))
        assignment = _assignment(asked, where)
        gpus = devices * asked.limits.pipeline
        fleet = make_fleet(where, assignment, context_max, asked.limits, asked.gpu_count // gpus)
        if fleet is not None:
            name = "plan" if asked.plan is not None else _scheme_name(asked, asked.hardware)
            return Question(asked, where, assignment, name, fleet, gpus, asked.gpu_count % gpus)
    raise CapabilityError(
        f"{asked.model.name} with a request of {context_max:,} tokens does not fit into {asked.gpu_count} "
        f"{asked.hardware.name}; raise --gpus, or name a narrower --scheme or --kv."
    )


def _context_max(asked: Asked) -> int:
    """Return the tokens of the longest request."""
    requests = asked.drawn
    return int((requests.prompt_tokens + requests.output_tokens).max())


def _devices_to_try(asked: Asked) -> tuple[int, ...]:
    """Return devices per stage of a replica, the fewest first."""
    stages = asked.limits.pipeline
    if not asked.choose_tensor_parallel:
        devices = asked.setting.gpu_count
        if devices * stages > asked.gpu_count:
            raise InputError(
                f"A replica takes {devices * stages} devices, --gpus gives {asked.gpu_count}; raise --gpus."
            )
        return (devices,)
    found = tuple(2**i for i in range(11) if 2**i * stages <= asked.gpu_count)
    if not found:
        raise InputError(
            f"{stages} stages need at least as many devices, --gpus gives {asked.gpu_count}; raise --gpus."
        )
    return found


def _scheme_name(asked: Asked, hardware: Hardware) -> str:
    return asked.scheme or baseline_scheme(hardware).name


def _assignment(asked: Asked, where: Deployment) -> Assignment:
    if asked.plan is None:
        return uniform_assignment(where, parse_scheme(_scheme_name(asked, asked.hardware)), asked.setting.kv)
    return planned_assignment(asked.plan, asked.model, asked.setting.kv)


def planned_assignment(plan: Plan, model: Model, kv: str = "") -> Assignment:
    """Return the schemes of a plan for its model; InputError where it was made for another one."""
    if plan.model_digest != model.digest:
        raise InputError(
            f"The plan was made for {plan.model[:80]}, whose shapes are not those of {model.name}; name its --model."
        )
    choices, _ = planned_choices(plan, fused_groups(model), promote=False)
    schemes = tuple(choice.scheme for choice in choices)
    return Assignment(tuple(choice.group for choice in choices), schemes, schemes[-1], parse_kv(kv or plan.kv))
