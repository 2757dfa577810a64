"""Bindings for the telemetry process: GPUs that count energy by the clock, until the fault that CHILD_NVML names.

CHILD_NVML is `fault@count`: the fault happens at that reading of the temperature (`0`: in nvmlInit); or `fault@path`:
when there is such a file. What is called is written to the file CHILD_NVML_LOG; a function that is none of the fake's,
such as one that sets or locks anything, raises as well.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.fake_nvml import FakeNvml, FakeNvmlError

MODULE = "tests.child_nvml"
FAULT, LOG = "CHILD_NVML", "CHILD_NVML_LOG"
WATT, TICK_S = 250.0, 0.1
SITE = "nvmlDeviceGetTemperature"
fake = FakeNvml(answers={"nvmlDeviceGetCurrentClocksEventReasons": 0, "nvmlDeviceGetComputeRunningProcesses": []})
once: set[str] = set()


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(3600)


def garble() -> None:
    """Write to every pipe that is open, as a library that has lost its mind would."""
    for number in range(3, 20):
        try:
            os.write(number, b'{"kind": "Moment", "at_s": NaN, "states": \xff\x00}\n')
        except OSError:
            continue


def lose() -> None:
    fake.failing = {name: FakeNvmlError(15) for name in (SITE, "nvmlDeviceGetPowerUsage")}


def print_much() -> None:
    print("a library prints" * 100, flush=True)
    os.write(1, b"and so does its C part\n")


def leave() -> None:
    sys.exit(3)


def flood() -> None:
    """Write a line that does not end."""
    for number in range(3, 20):
        try:
            while True:
                os.write(number, b"x" * 2**16)
        except OSError:
            continue


FAULTS: dict[str, Callable[[], None]] = {
    one.__name__: one for one in (die, hang, garble, lose, print_much, leave, flood)
}


def _fault_at(reading: int) -> None:
    name, _, count = os.environ.get(FAULT, "").partition("@")
    if name and (int(count) == reading if count.isdigit() else os.path.exists(count)):
        FAULTS[name]()


def _log(function: str) -> None:
    if LOG in os.environ and function not in once:
        once.add(function)
        with open(os.environ[LOG], "a", encoding="utf-8") as file:
            file.write(function + "\n")


def nvmlInit() -> None:
    _log("nvmlInit")
    _fault_at(0)


def nvmlDeviceGetTotalEnergyConsumption(_handle: Any) -> int:
    _log("nvmlDeviceGetTotalEnergyConsumption")
    return int(1e6 + 1000 * WATT * TICK_S * (time.perf_counter() // TICK_S))


def nvmlDeviceGetTemperature(*given: Any) -> Any:
    _log(SITE)
    answer = fake.nvmlDeviceGetTemperature(*given)
    _fault_at(fake.calls[SITE])
    return fake.nvmlDeviceGetTemperature(*given) if fake.failing else answer


def __getattr__(function: str) -> Any:
    if not function.startswith("nvml"):
        raise AttributeError(function)
    _log(function)
    return getattr(fake, function)
