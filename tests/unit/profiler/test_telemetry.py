import subprocess
import sys
import types
from types import SimpleNamespace

import pytest
from fake_nvml import ANSWERS, FakeNvml, FakeNvmlError

from codesign.profiler.ranges import NOTHING, Ranges
from codesign.profiler.telemetry import IDENTITY_FIELDS, event_names, hashed, load_bindings, open_telemetry


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_a_gpu_says_what_it_is_in_si_units():
    seen = open_telemetry(no_warning, FakeNvml())
    assert seen.driver.value == "580.65.06"
    assert [gpu.index for gpu in seen.gpus.value] == [0, 1]
    identity = seen.gpus.value[0].identity()
    assert set(identity) == set(IDENTITY_FIELDS)
    assert identity["name"].value == "NVIDIA Test GPU"
    assert identity["memory_bytes"].value == 80 * 2**30
    assert identity["max_sm_clock_hz"].value == 1.98e9
    assert identity["power_limit_watt"].value == 700.0
    assert identity["power_limit_range_watt"].value == [200.0, 700.0]
    assert (identity["ecc"].value, identity["mig"].value, identity["persistence"].value) == (True, False, True)


def test_a_gpu_says_what_it_does_in_si_units():
    state = open_telemetry(no_warning, FakeNvml()).gpus.value[0].state()
    assert state.sm_clock_hz.value == 1.755e9
    assert state.power_watt.value == 350.0
    assert state.energy_joule.value == pytest.approx(123_456.789)
    assert state.temperature_celsius.value == 61.0
    assert state.used_bytes.value == 2**30
    assert state.process_ids.value == (77, 78)
    assert state.events.value == ("sw_power_cap", "hw_thermal_slowdown", "event_0x800")


def test_the_raw_id_of_a_gpu_is_never_told():
    raw = ANSWERS["nvmlDeviceGetUUID"].decode()
    identity = open_telemetry(no_warning, FakeNvml()).gpus.value[0].identity()
    assert identity["uuid_hash"].value == hashed(raw)
    assert raw not in repr(identity)
    assert hashed(raw) != hashed(raw[:-1] + "7")


@pytest.mark.parametrize(("mask", "names"), [(0, ()), (1, ("gpu_idle",)), (0x88, ("hw_slowdown", "hw_power_brake"))])
def test_event_masks_become_names(mask, names):
    assert event_names(mask) == names


def test_drivers_with_the_old_name_of_events_are_understood():
    fake = FakeNvml({"nvmlDeviceGetCurrentClocksEventReasons": FakeNvmlError(13)})
    fake.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x4
    assert open_telemetry(no_warning, fake).gpus.value[0].state().events.value == ("sw_power_cap",)


def test_what_is_not_supported_is_asked_once_per_gpu_and_warned_of_once():
    warnings = []
    fake = FakeNvml({"nvmlDeviceGetTotalEnergyConsumption": FakeNvmlError(3)})
    gpus = open_telemetry(warnings.append, fake).gpus.value
    readings = [gpu.energy_joule() for gpu in (*gpus, *gpus, *gpus)]
    assert {one.value for one in readings} == {None}
    assert readings[0].why.startswith("NVML: not supported (nvmlDeviceGetTotalEnergyConsumption); fix: ")
    assert fake.calls["nvmlDeviceGetTotalEnergyConsumption"] == 2
    assert len(warnings) == 1


def test_a_timeout_is_asked_again():
    warnings = []
    fake = FakeNvml({"nvmlDeviceGetPowerUsage": FakeNvmlError(10)})
    gpu = open_telemetry(warnings.append, fake).gpus.value[0]
    assert gpu.power_watt().value is None
    fake.failing.clear()
    assert gpu.power_watt().value == 350.0
    assert len(warnings) == 1


def test_one_gpu_that_cannot_is_no_reason_for_the_other():
    def energy(handle: SimpleNamespace) -> int:
        if handle.index == 0:
            raise FakeNvmlError(3)
        return 5000

    fake = FakeNvml()
    fake.nvmlDeviceGetTotalEnergyConsumption = energy
    first, second = open_telemetry(lambda _: None, fake).gpus.value
    assert (first.energy_joule().value, second.energy_joule().value) == (None, 5.0)


@pytest.mark.parametrize(("code", "lost"), [(15, True), (16, True), (3, False), (10, False)])
def test_a_lost_gpu_is_remembered(code, lost):
    gpu = open_telemetry(lambda _: None, FakeNvml({"nvmlDeviceGetPowerUsage": FakeNvmlError(code)})).gpus.value[0]
    gpu.state()
    assert gpu.nvml.is_lost == lost


def test_no_gpu_is_absent_with_a_reason():
    seen = open_telemetry(no_warning, FakeNvml(answers={"nvmlDeviceGetCount": 0}))
    assert seen.gpus.value is None
    assert seen.gpus.why == "NVML shows no GPU"


def test_bindings_that_are_missing_are_absent_with_a_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    seen = open_telemetry(no_warning)
    assert seen.driver == seen.gpus
    assert seen.gpus.why.endswith("fix: pip install nvidia-ml-py")


def test_an_old_package_that_shadows_the_bindings_is_told_apart(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", types.ModuleType("pynvml"))
    assert "pip uninstall pynvml" in load_bindings().why


def test_ranges_without_nvtx_do_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    ranges = Ranges()
    assert ranges.range("case", 3) is NOTHING
    with ranges.range("case", 3), ranges.range("round", 1):
        pass


class FakeDomain:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def get_event_attributes(self, message: str, payload: int) -> tuple[str, int]:
        return message, payload

    def push_range(self, attributes: tuple[str, int]) -> None:
        self.seen.append(attributes)

    def pop_range(self) -> None:
        self.seen.append("pop")


def test_ranges_open_and_close_in_the_domain_of_codesign(monkeypatch):
    domains = {}
    nvtx = types.ModuleType("nvtx")
    nvtx.get_domain = lambda name: domains.setdefault(name, FakeDomain())
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)
    ranges = Ranges()
    with pytest.raises(ValueError, match="kernel"), ranges.range("case", 3), ranges.range("round", 1):
        raise ValueError("kernel")
    assert list(domains) == ["codesign"]
    assert domains["codesign"].seen == [("case", 3), ("round", 1), "pop", "pop"]


def test_real_nvtx_takes_our_ranges():
    pytest.importorskip("nvtx", reason="nvtx is optional")
    with Ranges().range("case", 3):
        pass


def test_help_and_telemetry_import_neither_nvtx_nor_numpy_nor_bindings():
    code = (
        "import sys, codesign.cli.main, codesign.profiler.telemetry, codesign.profiler.ranges, "
        "codesign.profiler.timing, codesign.profiler.verdict, codesign.profiler.energy; "
        "print(sorted({'nvtx', 'numpy', 'pynvml', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
