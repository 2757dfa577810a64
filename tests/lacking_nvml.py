"""Bindings for the telemetry process: GPUs that do not count energy."""

from typing import Any

from tests.fake_nvml import FakeNvml, FakeNvmlError

fake = FakeNvml({"nvmlDeviceGetTotalEnergyConsumption": FakeNvmlError(3)})


def __getattr__(function: str) -> Any:
    return getattr(fake, function)
