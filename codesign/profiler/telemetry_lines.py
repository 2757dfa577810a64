"""What the telemetry process says, as values: to JSON lines and strictly back; what is no reading is refused."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_type_hints

from codesign.codec import from_plain, to_plain
from codesign.errors import InputError
from codesign.profiler.reading import Reading

T = TypeVar("T")
WHERE = "the telemetry"


@dataclass(frozen=True, slots=True)
class GpuState:
    """What a GPU does at one moment."""

    sm_clock_hz: Reading[float]
    memory_clock_hz: Reading[float]
    power_watt: Reading[float]
    energy_joule: Reading[float]
    temperature_celsius: Reading[float]
    events: Reading[tuple[str, ...]]
    used_bytes: Reading[int]
    process_ids: Reading[tuple[int, ...]]


STATE_TYPES: Mapping[str, Any] = {name: get_args(hint)[0] for name, hint in get_type_hints(GpuState).items()}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device: its index, what does not change while a process runs, and what it did when it was first seen."""

    index: int
    identity: Mapping[str, Reading[Any]]
    state: GpuState


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The GPUs that NVML shows, each or all of them absent with a reason; `lost` says why those that are lost are."""

    driver: Reading[str]
    gpus: Reading[tuple[Gpu, ...]]
    lost: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """What the GPUs do at one moment of the monotonic clock, by index, and those that are lost."""

    at_s: float
    states: Mapping[int, GpuState]
    lost: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that the user should know once."""

    text: str


Message = Telemetry | Moment | Remark


def message_line(message: Message) -> bytes:
    """Return a message as one line; ValueError where a number in it is none."""
    plain = {"kind": type(message).__name__, **to_plain(message)}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def read_message(line: bytes) -> Message:
    """Return the message of a line; InputError if it is none."""
    try:
        value = json.loads(line)
        reader = READERS[value["kind"]]
        return reader({name: item for name, item in value.items() if name != "kind"})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"it said what is no reading: {line[:60]!r}") from error


@dataclass(frozen=True, slots=True)
class _Told:
    value: Any
    why: str | None = None


def _reading(wanted: type[T], value: Any) -> Reading[T]:
    told = from_plain(_Told, value, WHERE)
    if told.value is None:
        return Reading(None, told.why or "NVML gives no reason")
    return Reading(from_plain(wanted, told.value, WHERE))


def _state(value: dict[str, Any]) -> GpuState:
    return GpuState(**{name: _reading(wanted, value[name]) for name, wanted in STATE_TYPES.items()})


def _gpu(value: dict[str, Any]) -> Gpu:
    identity = {str(name): _reading(Any, item) for name, item in value["identity"].items()}
    return Gpu(from_plain(int, value["index"], WHERE), identity, _state(value["state"]))


def _lost(value: dict[str, Any]) -> dict[int, str]:
    return {int(index): from_plain(str, why, WHERE) for index, why in value["lost"].items()}


def _telemetry(value: dict[str, Any]) -> Telemetry:
    found = from_plain(_Told, value["gpus"], WHERE)
    gpus = None if found.value is None else tuple(_gpu(one) for one in found.value)
    return Telemetry(_reading(str, value["driver"]), Reading(gpus, found.why), _lost(value))


def _moment(value: dict[str, Any]) -> Moment:
    states = {int(index): _state(one) for index, one in value["states"].items()}
    return Moment(from_plain(float, value["at_s"], WHERE), states, _lost(value))


READERS: Mapping[str, Callable[[dict[str, Any]], Message]] = {
    "Telemetry": _telemetry,
    "Moment": _moment,
    "Remark": lambda value: from_plain(Remark, value, WHERE),
}
