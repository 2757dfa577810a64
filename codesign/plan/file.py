"""The plan: the decision, what is predicted for it and why; and its JSON file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from codesign.codec import from_plain, to_plain
from codesign.cost.advice_text import Advice
from codesign.cost.curve import BreakEven
from codesign.cost.engine import DEFAULT_ENGINE
from codesign.cost.memory import MemoryNeed
from codesign.cost.prediction import Prediction
from codesign.cost.waterfall import GainStep
from codesign.cost.workload import Workload
from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic

FORMAT_VERSION = 1
PLAN_BYTES_MAX = 64 * 2**20


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The decision for one fused group; `loss_nats` is None where no loss is known, `method` is what it assumes."""

    block_index: int | None
    name: str
    scheme: str
    bits_per_weight: float
    memory_bytes: float
    decode_s: Prediction
    prefill_s: Prediction
    bound: str
    loss_nats: Prediction | None
    method: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A scheme that was not considered, and why."""

    scheme: str
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What a whole deployment reaches."""

    ttft_s: Prediction
    tpot_s: Prediction
    tokens_per_s: Prediction
    energy_per_token_joule: Prediction
    usd_per_million_tokens: Prediction | None
    memory: MemoryNeed
    largest_batch: int
    largest_context_tokens: int


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One plan on the front between two criteria, in SI units, with its schemes by share of weights."""

    first: float
    second: float
    mix: str


@dataclass(frozen=True, slots=True)
class ParetoFront:
    """Plans of which none is better in both criteria."""

    first: str
    second: str
    points: tuple[ParetoPoint, ...]


@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    """A plan near the best one, its loss as the table adds it up and as the weights show it; one of them was taken."""

    mix: str
    objective_value: float
    predicted_loss_nats: float
    measured_loss_nats: Prediction
    taken: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision that can be shown, exported and carried out later; digests tie it to its inputs."""

    format_version: int
    codesign_version: str
    hardware: str
    hardware_digest: str
    model: str
    model_digest: str
    library: str
    gpu_count: int
    workload: Workload
    objective: str
    budgets: Mapping[str, float]
    method: str
    kv: str
    baseline_scheme: str
    verdict: str
    fits: bool
    capacity_bytes: float
    totals: Totals
    baseline: Totals
    baseline_fits: bool
    loss_nats: Prediction | None
    groups: tuple[GroupPlan, ...]
    decode_gain_steps: tuple[GainStep, ...]
    prefill_gain_steps: tuple[GainStep, ...]
    break_even: tuple[BreakEven, ...]
    refused: tuple[Refusal, ...]
    pareto: ParetoFront | None
    gap_fraction: float
    warnings: tuple[str, ...]
    kernel_sheets: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()
    engine: str = DEFAULT_ENGINE
    thread_count: int | None = None
    expert_parallel: int = 1
    measured: tuple[MeasuredPlan, ...] = ()
    measured_with: str = ""


def plan_json(plan: Plan) -> str:
    """Return the plan as strict JSON."""
    return to_json(to_plain(plan))


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan as JSON, whole or not at all."""
    write_atomic(path, plan_json(plan))


def read_plan(path: Path) -> Plan:
    """Return the plan in a JSON file; InputError if it is not one of this format version."""
    data = parse_json(read_text(path, PLAN_BYTES_MAX, "plan"), str(path))
    version = data.get("format_version") if isinstance(data, dict) else None
    if version is None:
        raise InputError(f"{path}: this is not a plan: it has no format_version. Write one with codesign plan --out.")
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {version!r}; this codesign reads {FORMAT_VERSION}. Plan again.")
    return from_plain(Plan, data, str(path))
