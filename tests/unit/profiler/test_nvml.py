"""What NVML's bindings are asked and how what they say is understood, in the process that asks."""

import sys
import types
from types import SimpleNamespace

import pytest
from fake_nvml import ANSWERS, FakeNvml, FakeNvmlError, first_device

from codesign.profiler.nvml import IDENTITY_FIELDS, Devices, event_names, hashed, load_bindings, open_devices
from codesign.profiler.reading import Reading


def no_warning(text: str) -> None:
    raise AssertionError(text)


def seen(fake: FakeNvml, warn: object = no_warning) -> Devices:
    return open_devices(warn, Reading(fake))


def test_a_gpu_says_what_it_is_in_si_units():
    told = seen(FakeNvml()).telemetry()
    assert told.driver.value == "580.65.06"
    assert [gpu.index for gpu in told.gpus.value] == [0, 1]
    identity = told.gpus.value[0].identity
    assert set(identity) == set(IDENTITY_FIELDS)
    assert identity["name"].value == "NVIDIA Test GPU"
    assert identity["memory_bytes"].value == 80 * 2**30
    assert identity["max_sm_clock_hz"].value == 1.98e9
    assert identity["power_limit_watt"].value == 700.0
    assert identity["power_limit_range_watt"].value == [200.0, 700.0]
    assert (identity["ecc"].value, identity["mig"].value, identity["persistence"].value) == (True, False, True)


def test_a_gpu_says_what_it_does_in_si_units():
    state = first_device(FakeNvml()).state()
    assert state.sm_clock_hz.value == 1.755e9
    assert state.power_watt.value == 350.0
    assert state.energy_joule.value == pytest.approx(123_456.789)
    assert state.temperature_celsius.value == 61.0
    assert state.used_bytes.value == 2**30
    assert state.process_ids.value == (77, 78)
    assert state.events.value == ("sw_power_cap", "hw_thermal_slowdown", "event_0x800")


def test_the_raw_id_of_a_gpu_is_never_told():
    raw = ANSWERS["nvmlDeviceGetUUID"].decode()
    identity = first_device(FakeNvml()).identity()
    assert identity["uuid_hash"].value == hashed(raw)
    assert raw not in repr(identity)
    assert hashed(raw) != hashed(raw[:-1] + "7")


@pytest.mark.parametrize(("mask", "names"), [(0, ()), (1, ("gpu_idle",)), (0x88, ("hw_slowdown", "hw_power_brake"))])
def test_event_masks_become_names(mask, names):
    assert event_names(mask) == names


def test_drivers_with_the_old_name_of_events_are_understood():
    fake = FakeNvml({"nvmlDeviceGetCurrentClocksEventReasons": FakeNvmlError(13)})
    fake.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x4
    assert seen(fake).found.value[0].state().events.value == ("sw_power_cap",)


def test_what_is_not_supported_is_asked_once_per_gpu_and_warned_of_once():
    warnings = []
    fake = FakeNvml({"nvmlDeviceGetTotalEnergyConsumption": FakeNvmlError(3)})
    gpus = seen(fake, warnings.append).found.value
    readings = [gpu.state().energy_joule for gpu in (*gpus, *gpus, *gpus)]
    assert {one.value for one in readings} == {None}
    assert readings[0].why.startswith("NVML: not supported (nvmlDeviceGetTotalEnergyConsumption); fix: ")
    assert fake.calls["nvmlDeviceGetTotalEnergyConsumption"] == 2
    assert len(warnings) == 1


def test_a_timeout_is_asked_again():
    warnings = []
    fake = FakeNvml({"nvmlDeviceGetPowerUsage": FakeNvmlError(10)})
    gpu = seen(fake, warnings.append).found.value[0]
    assert gpu.state().power_watt.value is None
    fake.failing.clear()
    assert gpu.state().power_watt.value == 350.0
    assert len(warnings) == 1


def test_one_gpu_that_cannot_is_no_reason_for_the_other():
    def energy(handle: SimpleNamespace) -> int:
        if handle.index == 0:
            raise FakeNvmlError(3)
        return 5000

    fake = FakeNvml()
    fake.nvmlDeviceGetTotalEnergyConsumption = energy
    moment = seen(fake, lambda _: None).moment(1.0)
    assert [moment.states[i].energy_joule.value for i in (0, 1)] == [None, 5.0]


@pytest.mark.parametrize(("code", "lost"), [(15, True), (16, True), (3, False), (10, False)])
@pytest.mark.parametrize("site", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetHandleByIndex"])
def test_a_lost_gpu_is_told_by_its_index_and_stays_lost(code, lost, site):
    fake = FakeNvml({site: FakeNvmlError(code)})
    devices = seen(fake, lambda _: None)
    devices.telemetry()
    fake.failing.clear()
    assert (set(devices.moment(1.0).lost) == {0, 1}) == lost
    assert all("NVML: " in why and site in why for why in devices.lost.values())


def test_no_gpu_is_absent_with_a_reason():
    told = seen(FakeNvml(answers={"nvmlDeviceGetCount": 0})).telemetry()
    assert (told.gpus.value, told.gpus.why) == (None, "NVML shows no GPU")


def test_bindings_that_are_missing_are_absent_with_a_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    told = open_devices(no_warning, load_bindings())
    assert told.driver == told.found
    assert told.found.why == "nvidia-ml-py is not installed; fix: pip install nvidia-ml-py"


def test_bindings_that_lack_something_themselves_say_what(tmp_path, monkeypatch):
    (tmp_path / "lacking_bindings.py").write_text("import no_such_module_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "no_such_module_here" in load_bindings("lacking_bindings").why


def test_an_old_package_that_shadows_the_bindings_is_told_apart(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", types.ModuleType("pynvml"))
    assert "pip uninstall pynvml" in load_bindings().why
