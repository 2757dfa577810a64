"""What NVIDIA GPUs say about themselves, through nvidia-ml-py (the module `pynvml`); only the telemetry process asks.

No error of NVML leaves this file: a value that cannot be had is a `Reading` with the reason and the fix. What is not
offered is asked for once and warned about once. Nothing here sets anything: clocks stay as they are.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from codesign.profiler.nvml_errors import FUNCTION_NOT_FOUND, LOST, code_of
from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry_lines import Gpu, GpuState, Moment, Telemetry
from codesign.units import MEGA, MILLI

BINDINGS = "pynvml"
INSTALL_FIX = "pip install nvidia-ml-py"
EVENT_BITS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}  # nvml.h, nvmlClocksEventReasons
SM_CLOCK, MEMORY_CLOCK = 1, 2  # nvml.h, nvmlClockType_t
GPU_TEMPERATURE = 0  # nvml.h, nvmlTemperatureSensors_t


@dataclass(frozen=True, slots=True)
class Field:
    """One value: the function that gives it, its name in older drivers, and how what it gives becomes ours."""

    function: str
    convert: Callable[[Any], Any]
    arguments: tuple[int, ...] = ()
    older_function: str | None = None


def hashed(identity: str) -> str:
    """Return a short name that tells devices apart and does not tell which they are."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def event_names(mask: int) -> tuple[str, ...]:
    """Return the clock event reasons of a mask; bits that are new to us keep their number."""
    bits = [1 << i for i in range(mask.bit_length()) if mask >> i & 1]
    return tuple(EVENT_BITS.get(bit, f"event_{bit:#x}") for bit in bits)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _hertz(value: Any) -> float:
    return float(value) * MEGA


def _from_milli(value: Any) -> float:
    return float(value) * MILLI


def _milli_range(value: Any) -> list[float]:
    return [float(one) * MILLI for one in value]


def _on_off(value: Any) -> bool:
    return bool(value[0] if isinstance(value, (tuple, list)) else value)


IDENTITY_FIELDS: Mapping[str, Field] = {
    "name": Field("nvmlDeviceGetName", _text),
    "uuid_hash": Field("nvmlDeviceGetUUID", lambda value: hashed(_text(value))),
    "vbios": Field("nvmlDeviceGetVbiosVersion", _text),
    "memory_bytes": Field("nvmlDeviceGetMemoryInfo", lambda value: int(value.total)),
    "max_sm_clock_hz": Field("nvmlDeviceGetMaxClockInfo", _hertz, (SM_CLOCK,)),
    "max_memory_clock_hz": Field("nvmlDeviceGetMaxClockInfo", _hertz, (MEMORY_CLOCK,)),
    "power_limit_watt": Field("nvmlDeviceGetPowerManagementLimit", _from_milli),
    "default_power_limit_watt": Field("nvmlDeviceGetPowerManagementDefaultLimit", _from_milli),
    "power_limit_range_watt": Field("nvmlDeviceGetPowerManagementLimitConstraints", _milli_range),
    "ecc": Field("nvmlDeviceGetEccMode", _on_off),
    "mig": Field("nvmlDeviceGetMigMode", _on_off),
    "persistence": Field("nvmlDeviceGetPersistenceMode", _on_off),
    "compute_mode": Field("nvmlDeviceGetComputeMode", int),
    "pcie_generation": Field("nvmlDeviceGetCurrPcieLinkGeneration", int),
    "pcie_lanes": Field("nvmlDeviceGetCurrPcieLinkWidth", int),
}
STATE_FIELDS: Mapping[str, Field] = {
    "sm_clock_hz": Field("nvmlDeviceGetClockInfo", _hertz, (SM_CLOCK,)),
    "memory_clock_hz": Field("nvmlDeviceGetClockInfo", _hertz, (MEMORY_CLOCK,)),
    "power_watt": Field("nvmlDeviceGetPowerUsage", _from_milli),
    "energy_joule": Field("nvmlDeviceGetTotalEnergyConsumption", _from_milli),
    "temperature_celsius": Field("nvmlDeviceGetTemperature", float, (GPU_TEMPERATURE,)),
    "events": Field(
        "nvmlDeviceGetCurrentClocksEventReasons", event_names, (), "nvmlDeviceGetCurrentClocksThrottleReasons"
    ),
    "used_bytes": Field("nvmlDeviceGetMemoryInfo", lambda value: int(value.used)),
    "process_ids": Field("nvmlDeviceGetComputeRunningProcesses", lambda value: tuple(int(one.pid) for one in value)),
}


class Nvml:
    """The bindings with every error turned into a reading.

    `module` is `pynvml` or something that behaves like it; `warn` is told once of each thing that is missing. `lost`
    holds what was said of devices that are lost, by their index or by the identity of their handle.
    """

    def __init__(self, module: Any, warn: Callable[[str], None]) -> None:
        self._module, self._warn = module, warn
        self._lasting: dict[tuple[object, ...], Reading[Any]] = {}
        self._warned: set[str] = set()
        self._unknown: set[str] = set()
        self.lost: dict[int, str] = {}

    def call(self, function: str, *arguments: Any, convert: Callable[[Any], Any] = lambda value: value) -> Reading[Any]:
        """Return what a function of the bindings gives, converted, or why it gives nothing."""
        names = [argument if isinstance(argument, int) else id(argument) for argument in arguments]
        key = (function, *names)
        if key in self._lasting:
            return self._lasting[key]
        try:
            return Reading(convert(getattr(self._module, function)(*arguments)))
        except Exception as error:  # the bindings raise whatever a driver makes of them; none may end a measurement
            code = code_of(error)
            value = getattr(error, "value", None)
            if value == FUNCTION_NOT_FOUND or not hasattr(self._module, function):
                self._unknown.add(function)
        why = f"NVML: {code.name} ({function}); fix: {code.fix}"
        if value in LOST and names:
            self.lost.setdefault(names[0], why)
        reading = absent(why)
        if code.lasting:
            self._lasting[key] = reading
        return reading

    def field(self, field: Field, handle: Any) -> Reading[Any]:
        """Return one value of a device; say once what cannot be had."""
        reading = self.call(field.function, handle, *field.arguments, convert=field.convert)
        if field.function in self._unknown and field.older_function:
            older = self.call(field.older_function, handle, *field.arguments, convert=field.convert)
            reading = reading if field.older_function in self._unknown else older
        if reading.value is not None:
            return reading
        if field.function not in self._warned:
            self._warned.add(field.function)
            self._warn(f"GPU telemetry is incomplete. {reading.why}.")
        return reading


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its index and the handle under which NVML knows it."""

    nvml: Nvml
    index: int
    handle: Any

    def identity(self) -> Mapping[str, Reading[Any]]:
        """Return what does not change while a process runs, by the names of IDENTITY_FIELDS."""
        return {name: self.nvml.field(field, self.handle) for name, field in IDENTITY_FIELDS.items()}

    def state(self) -> GpuState:
        """Return what the device does now."""
        return GpuState(**{name: self.nvml.field(field, self.handle) for name, field in STATE_FIELDS.items()})


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that NVML gives handles of, or why there are none; `unreachable` says why those are that are lost."""

    driver: Reading[str]
    found: Reading[tuple[Device, ...]]
    unreachable: Mapping[int, str]

    @property
    def lost(self) -> dict[int, str]:
        """Return the devices that are lost, each with what NVML says."""
        asked = {one.index: one.nvml.lost.get(id(one.handle)) for one in self.found.value or ()}
        return {**self.unreachable, **{index: why for index, why in asked.items() if why is not None}}

    def telemetry(self) -> Telemetry:
        """Return all devices with their identities."""
        gpus = tuple(Gpu(one.index, one.identity(), one.state()) for one in self.found.value or ())
        return Telemetry(self.driver, Reading(gpus) if gpus else absent(self.found.why or ""), self.lost)

    def moment(self, at_s: float) -> Moment:
        """Return what all devices do now."""
        states = {one.index: one.state() for one in self.found.value or ()}
        return Moment(at_s, states, self.lost)


def open_devices(warn: Callable[[str], None], bindings: Reading[Any]) -> Devices:
    """Return the devices here; `bindings` is `pynvml` or what stands in for it."""
    if bindings.value is None:
        return Devices(absent(bindings.why or ""), absent(bindings.why or ""), {})
    nvml = Nvml(bindings.value, warn)
    started = nvml.call("nvmlInit", convert=lambda _: True)
    if started.value is None:
        return Devices(absent(started.why or ""), absent(started.why or ""), {})
    driver = nvml.call("nvmlSystemGetDriverVersion", convert=_text)
    count = nvml.call("nvmlDeviceGetCount", convert=int)
    if count.value is None:
        return Devices(driver, absent(count.why or ""), {})
    handles = [(i, nvml.call("nvmlDeviceGetHandleByIndex", i)) for i in range(count.value)]
    found = tuple(Device(nvml, i, handle.value) for i, handle in handles if handle.value is not None)
    reason = next((handle.why for _, handle in handles if handle.why), "NVML shows no GPU")
    unreachable = {i: nvml.lost[i] for i, _ in handles if i in nvml.lost}
    return Devices(driver, Reading(found) if found else absent(reason), unreachable)


def load_bindings(name: str = BINDINGS) -> Reading[Any]:
    """Return the bindings, unless they are missing or an old package of that name stands in their place."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        told = "nvidia-ml-py is not installed" if error.name == name else f"{name} cannot be imported: {error}"
        return absent(f"{told}; fix: {INSTALL_FIX}")
    if not hasattr(module, "nvmlDeviceGetTotalEnergyConsumption"):
        fix = f"pip uninstall pynvml, then {INSTALL_FIX}"
        return absent(f"the module {name} here is an old package that shadows nvidia-ml-py; fix: {fix}")
    return Reading(module)
