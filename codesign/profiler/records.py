"""What one case measured with one kernel came to: samples, conditions, verdict; to JSON and strictly back."""

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_type_hints

from codesign.codec import from_plain, to_plain
from codesign.errors import InputError
from codesign.profiler.check import Check
from codesign.profiler.energy import Energy
from codesign.profiler.gpu_states import GpuRound
from codesign.profiler.kernel import AttentionCase, BlockCase, GemmCase, RunnableCase
from codesign.profiler.statistics import ProcessSpread, Summary
from codesign.profiler.timing import WarmUp
from codesign.profiler.verdict import Conditions, Kind, Verdict
from codesign.units import GIGA

FORMAT_VERSION = 1
KEY_CHARACTERS = 16
INTERRUPTED = "interrupted"
DEVICE_LOST = "device_lost"
KERNEL_NOTE = "kernel"
DISTURBANCES = ("contention", "unstable", "memory_moved")


@dataclass(frozen=True, slots=True)
class ServingCase:
    """A run of a whole model; `figure` is the time that the samples hold."""

    model: str
    scheme: str
    kv_format: str
    gpus: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    figure: Literal["tpot_s", "ttft_s"]
    threads: int = 1


@dataclass(frozen=True, slots=True)
class ForeignCase:
    """A kernel that another tool measured under a name of its own; `parameters` as that tool states them."""

    name: str
    parameters: Mapping[str, str]


AnyCase = RunnableCase | ServingCase | ForeignCase
KINDS: dict[str, type[Any]] = {
    "gemm": GemmCase,
    "attention": AttentionCase,
    "block": BlockCase,
    "serving": ServingCase,
    "foreign": ForeignCase,
}


@dataclass(frozen=True, slots=True)
class Procedure:
    """How the samples were taken; `notes` holds what else is known, such as what an imported file states."""

    started_utc: str
    affinity: tuple[int, ...]
    copies: int
    warm_up: WarmUp | None
    round_sizes: tuple[int, ...]
    notes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case run by one kernel. Rows that are not valid keep their samples, and are never fitted.

    `samples_s` and `summary` are of all processes that ran the case, `spread` of their medians where there were
    several. `memory_bytes_per_s` is what memory gave after each round. Fields with a default are missing in older
    files.
    """

    key: str
    hw: str
    library: str
    library_version: str
    kernel: str
    case: AnyCase
    samples_s: tuple[float, ...]
    summary: Summary | None
    read_bytes: float | None
    flop: float | None
    math_dtype: str
    check: Check | None
    procedure: Procedure
    conditions: Conditions
    verdict: Verdict
    spread: ProcessSpread | None = None
    energy: Energy | None = None
    gpu_rounds: tuple[GpuRound, ...] = ()
    memory_bytes_per_s: tuple[float, ...] = ()

    @property
    def interval_s(self) -> tuple[float, float] | None:
        """Return the error bar of the median: the interval of the samples, or the processes' range if that is wider."""
        if self.summary is None:
            return None
        own = (self.summary.ci_low_s, self.summary.ci_high_s)
        if self.spread is None:
            return own
        return min(own[0], self.spread.low_s), max(own[1], self.spread.high_s)

    @property
    def half_width_fraction(self) -> float | None:
        """Return half the error bar over the median."""
        if self.summary is None or self.interval_s is None:
            return None
        return (self.interval_s[1] - self.interval_s[0]) / (2 * self.summary.median_s)

    @property
    def memory_gb_per_s(self) -> float | None:
        """Return what memory gave beside the samples in 10^9 B/s, their median; None where it was not probed."""
        return statistics.median(self.memory_bytes_per_s) / GIGA if self.memory_bytes_per_s else None

    @property
    def interrupted(self) -> bool:
        """Return whether the run was stopped in this case, so that it is measured again."""
        return any(reason.name in (INTERRUPTED, DEVICE_LOST) for reason in self.verdict.reasons)

    @property
    def kernel_note(self) -> str:
        """Return what a reader must know of the kernel, such as that it is reference code; empty for most."""
        return str(self.procedure.notes.get(KERNEL_NOTE, ""))

    @property
    def disturbed(self) -> bool:
        """Return whether the row is suspect for what else the machine did, so that another try may be valid."""
        return self.verdict.kind is Kind.SUSPECT and any(one.name in DISTURBANCES for one in self.verdict.reasons)

    @property
    def is_valid(self) -> bool:
        """Return whether the row may be fitted."""
        return self.verdict.kind is Kind.VALID

    @property
    def is_invalid(self) -> bool:
        """Return whether the row may not even be shown as a number."""
        return self.verdict.kind is Kind.INVALID


def kind_of(case: AnyCase) -> str:
    """Return the name of the case's type in files."""
    return next(name for name, type_ in KINDS.items() if type(case) is type_)


def case_json(case: AnyCase) -> dict[str, Any]:
    """Return a case as JSON, with its kind."""
    return {"kind": kind_of(case), **to_plain(case)}


def case_from_json(value: Any, where: str) -> AnyCase:
    """Return the case; InputError for an unknown kind."""
    if not isinstance(value, dict) or value.get("kind") not in KINDS:
        raise InputError(f"{where}: not a case; its kind must be one of {', '.join(KINDS)}.")
    case: AnyCase = from_plain(
        KINDS[value["kind"]], {name: item for name, item in value.items() if name != "kind"}, where
    )
    return case


def measurement_json(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement as JSON."""
    return {
        "format_version": FORMAT_VERSION,
        **to_plain(measurement),
        "case": case_json(measurement.case),
    }


def measurement_from_json(value: dict[str, Any], where: str) -> Measurement:
    """Return the measurement; InputError if it is none, or of a newer codesign."""
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"{where}: format_version {version!r}; this codesign reads {FORMAT_VERSION}. Update codesign.")
    hints = get_type_hints(Measurement)
    given = {name: item for name, item in value.items() if name != "format_version"}
    needed = {one.name for one in fields(Measurement) if one.default is MISSING}
    for name in sorted((needed - set(given)) | (set(given) - set(hints))):
        raise InputError(f'{where}: the key "{name}" is {"missing" if name in hints else "unknown"}.')
    known = {name: from_plain(hints[name], item, f"{where}.{name}") for name, item in given.items() if name != "case"}
    return Measurement(**known, case=case_from_json(given["case"], f"{where}.case"))


def record_key(library: str, version: str, kernel: str, case: AnyCase, critical: Mapping[str, str]) -> str:
    """Return what identifies a case measured with a kernel under conditions that decide its speed."""
    parts = [library, version, kernel, case_json(case), dict(sorted(critical.items()))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_CHARACTERS]


def newest(measurements: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """Return one measurement per key, the newest, in the order of first appearance."""
    return tuple({one.key: one for one in measurements}.values())
