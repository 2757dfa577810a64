"""What a GPU does around rounds, and what verdicts that gives."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_nvml import ANSWERS, FakeNvml, FakeNvmlError, first_device

from codesign.profiler.gpu_states import GpuRound, GpuSnapshot, chosen_gpu, round_of, snapshot, with_gpu
from codesign.profiler.nvml import STATE_FIELDS, open_devices
from codesign.profiler.reading import Reading
from codesign.profiler.statistics import summarize
from codesign.profiler.telemetry_lines import GpuState, Telemetry
from codesign.profiler.timing import StopReason
from codesign.profiler.verdict import Ceilings, Conditions, judge

SUMMARY = summarize([1e-3 + i * 1e-7 for i in range(31)])
CEILINGS = Ceilings(1.0, 1.0)
UUID = ANSWERS["nvmlDeviceGetUUID"].decode()


def told(fake: FakeNvml) -> Telemetry:
    return open_devices(lambda _: None, Reading(fake)).telemetry()


def state(**answers: object) -> GpuState:
    return first_device(FakeNvml(answers=answers)).state()


def processes(root: Path, **parents: int) -> Path:
    for name, parent in parents.items():
        (root / name[1:]).mkdir(parents=True)
        (root / name[1:] / "stat").write_text(f"{name[1:]} (an (odd) name) S {parent} 0 0\n")
    return root


@pytest.mark.parametrize(("visible", "index"), [(None, 0), ("0", 0), ("1,0", 1), (UUID, 0)])
def test_the_first_visible_device_is_the_one(visible, index):
    assert chosen_gpu(told(FakeNvml()), visible).value.index == index


@pytest.mark.parametrize("visible", ["", "7", "MIG-0a1b2c3d", "GPU-ffffffff-1111-2222-3333-444455556666"])
def test_a_device_that_nvml_does_not_show_is_absent_with_a_reason(visible):
    assert "names none of the devices" in chosen_gpu(told(FakeNvml()), visible).why
    none = told(FakeNvml({"nvmlInit": FakeNvmlError(12)}))
    assert chosen_gpu(none, visible).value is None


def test_a_moment_is_kept_in_si_units_and_absent_fields_are_none(tmp_path):
    folder = processes(tmp_path, p77=os.getpid(), p78=1)
    seen = snapshot(state(), folder)
    assert (seen.sm_clock_hz, seen.power_watt, seen.temperature_celsius) == (1.755e9, 350.0, 61.0)
    assert (seen.events, seen.other_processes) == (("sw_power_cap", "hw_thermal_slowdown", "event_0x800"), 1)
    failing = FakeNvml({field.function: FakeNvmlError(3) for field in STATE_FIELDS.values()})
    bare = snapshot(first_device(failing).state(), folder)
    assert (bare.sm_clock_hz, bare.events, bare.other_processes) == (None, (), None)


def test_processes_whose_numbers_are_those_of_another_container_are_not_counted(tmp_path):
    assert snapshot(state(), processes(tmp_path, p77=os.getpid())).other_processes is None


def test_the_process_that_measures_is_no_other_one(tmp_path):
    """It asks CUDA what the GPU can before it starts the others, and may be seen on it."""
    here = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=77)]
    folder = processes(tmp_path, **{"p77": os.getpid(), f"p{os.getpid()}": 1})
    assert snapshot(state(nvmlDeviceGetComputeRunningProcesses=here), folder).other_processes == 0


def at_clock(clock_mhz: int, events: int = 0) -> GpuState:
    return state(nvmlDeviceGetClockInfo=clock_mhz, nvmlDeviceGetCurrentClocksEventReasons=events)


def test_a_round_is_what_was_read_before_in_and_after_it():
    clocks = ((0.0, 200), (0.9, 300), (1.1, 1000), (1.5, 1600), (2.1, 500), (3.0, 100))
    seen = [(at_s, at_clock(mhz, 0x40 if at_s == 1.5 else 0)) for at_s, mhz in clocks]
    found = round_of(seen, 1.0, 2.0)
    assert (found.before.sm_clock_hz, found.after.sm_clock_hz) == (3e8, 5e8)
    assert (found.mean_sm_clock_hz, found.mean_power_watt, found.state_count) == (1.3e9, 350.0, 2)
    assert found.events == ("hw_thermal_slowdown",)
    conditions = with_gpu(Conditions(), (found,), 2e9)
    assert (conditions.clock_fraction, conditions.gpu_events) == (0.65, ("hw_thermal_slowdown",))


def test_a_round_too_short_to_be_seen_is_what_lies_around_it():
    seen = [(0.0, at_clock(300)), (1.0, at_clock(900))]
    found = round_of(seen, 0.4, 0.5)
    assert (found.mean_sm_clock_hz, found.state_count) == (None, 0)
    assert with_gpu(Conditions(), (found,), 1e9).clock_fraction == 0.9
    assert round_of([], 0.4, 0.5) is None
    assert round_of(seen, 2.0, 3.0) is None
    ending = round_of(seen, 0.4, 3.0)
    assert (ending.before.sm_clock_hz, ending.mean_sm_clock_hz, ending.after.sm_clock_hz) == (3e8, 9e8, 9e8)


def rounds(clock_hz: float, *events: str) -> tuple[GpuRound, ...]:
    resting = GpuSnapshot(sm_clock_hz=2e8, events=("gpu_idle",))
    return (GpuRound(resting, GpuSnapshot(clock_hz, 1e9, 300.0, 84.0, events, 0)),) * 3


def verdict(*of: GpuRound) -> str:
    found = with_gpu(Conditions(stop_reason=StopReason.CI), of, 2e9)
    told = judge(SUMMARY, found, CEILINGS)
    return str(told) + "".join(one.evidence for one in told.reasons)


def test_a_hot_gpu_makes_the_row_invalid_and_a_power_cap_suspect():
    assert verdict(*rounds(2e9)) == "valid"
    assert verdict(*rounds(1.2e9, "sw_thermal_slowdown")) == (
        "invalid(throttled)sw_thermal_slowdown, mean clock 60 % of the usual"
    )
    assert verdict(*rounds(1.8e9, "sw_power_cap")) == (
        "suspect(power_capped)sw_power_cap, mean clock 90 % of the usual"
    )


def test_other_processes_on_the_gpu_are_contention():
    busy = GpuRound(GpuSnapshot(), GpuSnapshot(other_processes=2))
    assert verdict(busy) == "suspect(contention)2 other processes on the GPU"


def test_without_rounds_and_clocks_nothing_is_claimed():
    assert with_gpu(Conditions(), (), 2e9) == Conditions()
    found = with_gpu(Conditions(), (GpuRound(GpuSnapshot(), GpuSnapshot()),), None)
    assert (found.clock_fraction, found.gpu_other_processes, found.gpu_events) == (None, None, ())
