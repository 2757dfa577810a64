"""The process that asks NVML and the thread that reads it, when all is well."""

import os
import time

import pytest

from codesign.errors import InputError
from codesign.profiler import telemetry
from codesign.profiler.nvml import open_devices
from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry import Sampler, read_telemetry
from codesign.profiler.telemetry_lines import Moment, Remark, Telemetry, message_line, read_message
from tests.child_nvml import MODULE
from tests.fake_nvml import FakeNvml, FakeNvmlError


def no_warning(text: str) -> None:
    raise AssertionError(text)


def message(fake: FakeNvml) -> Telemetry:
    return open_devices(lambda _: None, Reading(fake)).telemetry()


def moment(fake: FakeNvml) -> Moment:
    return open_devices(lambda _: None, Reading(fake)).moment(12.5)


LACKING = {"nvmlDeviceGetPowerUsage": FakeNvmlError(3), "nvmlDeviceGetVbiosVersion": FakeNvmlError(4)}
LOST = {"nvmlDeviceGetHandleByIndex": FakeNvmlError(15)}


@pytest.mark.parametrize(
    "given",
    [
        message(FakeNvml()),
        message(FakeNvml(LACKING)),
        message(FakeNvml(LOST)),
        message(FakeNvml({"nvmlInit": FakeNvmlError(12)})),
        moment(FakeNvml()),
        moment(FakeNvml(LACKING)),
        Moment(1.0, {}, {0: "NVML: GPU is lost"}),
        Remark("GPU telemetry is incomplete."),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_said_comes_back_as_it_was(given):
    line = message_line(given)
    assert line.count(b"\n") == 1
    back = read_message(line)
    assert message_line(back) == line
    assert type(back) is type(given)
    if isinstance(given, Moment):
        assert back == given


MOMENT = message_line(moment(FakeNvml())).rstrip()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Segmentation fault",
        b"[]",
        b"7",
        b"null",
        b'{"kind": "Moment"}',
        b'{"kind": ["Moment"]}',
        b'{"kind": "Other", "text": "x"}',
        b'{"kind": "Remark", "text": 7}',
        b'{"kind": "Telemetry", "driver": 7, "gpus": {"value": null}, "lost": {}}',
        b'{"kind": "Telemetry", "driver": {"value": "1"}, "gpus": {"value": 7}, "lost": {}}',
        b"[" * 100_000,
        MOMENT[:-1],
        MOMENT.replace(b"12.5", b"NaN"),
        MOMENT.replace(b"12.5", b'"now"'),
        MOMENT.replace(b'"power_watt": {"value": 350.0', b'"power_watt": {"value": "much"'),
        MOMENT.replace(b'"power_watt": {"value": 350.0', b'"power_watt": {"value": Infinity'),
        MOMENT.replace(b"[77, 78]", b'["77"]'),
        MOMENT.replace(b'"used_bytes"', b'"unused_bytes"'),
        b"\xff\xfe",
    ],
)
def test_what_is_no_reading_is_refused(line):
    assert line != MOMENT
    with pytest.raises(InputError, match=r"it said what is no reading|the telemetry"):
        read_message(line)


def test_the_devices_are_told_and_then_what_they_do(monkeypatch):
    monkeypatch.setenv("CHILD_NVML", "print_much@3")
    with Sampler(no_warning, MODULE) as sampler:
        told = sampler.telemetry()
        assert [gpu.identity["name"].value for gpu in told.gpus.value] == ["NVIDIA Test GPU"] * 2
        begin_s = time.perf_counter()
        sampler.wait_past(begin_s + 0.5, 30.0)
        times = [at_s for at_s, _ in sampler.states(1, begin_s, float("inf"))]
        states = [state for _, state in sampler.states(1, begin_s, float("inf"))]
        assert sampler.why is None
    assert 2 <= len(times) <= 30  # 20 per second
    assert times == sorted(times)
    assert states[0].temperature_celsius.value == 61.0
    assert (sampler.states(5, begin_s, float("inf")), sampler.lost(1)) == ((), None)


def test_the_energy_counter_is_read_while_it_counts():
    with Sampler(no_warning, MODULE) as sampler:
        begin_s = time.perf_counter()
        sampler.wait_past(begin_s + 1.0, 30.0)
        seen = sampler.states(0, begin_s, float("inf"))
    joules = [state.energy_joule.value for _, state in seen]
    assert joules == sorted(joules)
    assert joules[-1] > joules[0]


def test_closing_ends_the_process_at_once():
    sampler = Sampler(no_warning, MODULE)
    sampler.telemetry()
    pid = sampler._process.pid
    sampler.close()
    assert not sampler._thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_a_gpu_lacks_is_warned_of_once():
    warnings: list[str] = []
    with Sampler(warnings.append, "tests.lacking_nvml") as sampler:
        sampler.telemetry()
        sampler.wait_past(time.perf_counter() + 0.2)
    assert len(warnings) == 1
    assert "not supported (nvmlDeviceGetTotalEnergyConsumption)" in warnings[0]


def test_without_bindings_no_process_is_started(monkeypatch):
    monkeypatch.setattr(telemetry.subprocess, "Popen", None)
    told = read_telemetry(no_warning, "no_such_bindings_here")
    assert told.gpus.why == told.driver.why == "nvidia-ml-py is not installed; fix: pip install nvidia-ml-py"


def test_without_a_gpu_the_reason_is_nvmls_and_one_process_says_it(monkeypatch):
    starts = []
    popen = telemetry.subprocess.Popen
    monkeypatch.setattr(telemetry.subprocess, "Popen", lambda *a, **k: starts.append(a) or popen(*a, **k))
    with Sampler(no_warning, "tests.driverless_nvml") as sampler:
        told = sampler.telemetry()
        sampler.wait_past(float("inf"), 5.0)
        assert (sampler.why, len(starts)) == (told.gpus.why, 1)
    assert told.gpus.why.startswith("NVML: library not found (nvmlInit)")


def test_a_process_that_cannot_be_started_is_a_reason(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(telemetry.subprocess, "Popen", refuse)
    why = "the telemetry process cannot be started (PermissionError)"
    assert read_telemetry(no_warning, MODULE) == Telemetry(absent(why), absent(why))
