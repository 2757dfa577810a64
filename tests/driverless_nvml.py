"""Bindings for the telemetry process: a machine without the driver's library."""

from typing import Any

from tests.fake_nvml import FakeNvml, FakeNvmlError

fake = FakeNvml({"nvmlInit": FakeNvmlError(12)})


def __getattr__(function: str) -> Any:
    return getattr(fake, function)
