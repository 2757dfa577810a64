"""A module that behaves like pynvml on a machine with GPUs, and fails where and how a test says."""

from types import SimpleNamespace
from typing import Any

from codesign.profiler.nvml import IDENTITY_FIELDS, STATE_FIELDS, Device, open_devices
from codesign.profiler.reading import Reading

ANSWERS: dict[str, Any] = {
    "nvmlInit": None,
    "nvmlSystemGetDriverVersion": b"580.65.06",
    "nvmlDeviceGetCount": 2,
    "nvmlDeviceGetName": "NVIDIA Test GPU",
    "nvmlDeviceGetUUID": b"GPU-0a1b2c3d-1111-2222-3333-444455556666",
    "nvmlDeviceGetVbiosVersion": "96.00.1",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30, used=2**30),
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetPowerManagementLimit": 700_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetPowerManagementLimitConstraints": [200_000, 700_000],
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetComputeMode": 0,
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetClockInfo": 1755,
    "nvmlDeviceGetPowerUsage": 350_000,
    "nvmlDeviceGetTotalEnergyConsumption": 123_456_789,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x40 | 0x800,
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=77), SimpleNamespace(pid=78)],
}
CALL_SITES = ("nvmlDeviceGetHandleByIndex", *ANSWERS)
GPU_CALL_SITES = tuple(dict.fromkeys(field.function for field in (*IDENTITY_FIELDS.values(), *STATE_FIELDS.values())))


def first_device(fake: Any) -> Device:
    """Return the first device of a fake, in this process."""
    return open_devices(lambda _: None, Reading(fake)).found.value[0]


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeNvml:
    """`failing` maps functions to the error that each raises; `calls` counts what was asked."""

    def __init__(self, failing: dict[str, BaseException] | None = None, answers: dict[str, Any] | None = None) -> None:
        self.failing, self.answers = failing or {}, {**ANSWERS, **(answers or {})}
        self.calls: dict[str, int] = {}

    def __getattr__(self, function: str) -> Any:
        if function not in CALL_SITES:
            raise AttributeError(function)

        def call(*arguments: Any) -> Any:
            self.calls[function] = self.calls.get(function, 0) + 1
            if function in self.failing:
                raise self.failing[function]
            if function == "nvmlDeviceGetHandleByIndex":
                return SimpleNamespace(index=arguments[0])
            return self.answers[function]

        return call
