"""Each of the 31 error codes of NVML at each call site: no exception, a named reason with a fix, timing unaffected."""

import dataclasses

import pytest
from fake_clock import FakeClock
from fake_nvml import CALL_SITES, GPU_CALL_SITES, FakeNvml, FakeNvmlError

from codesign.profiler.nvml import STATE_FIELDS, open_devices
from codesign.profiler.nvml_errors import NVML_CODES
from codesign.profiler.reading import Reading
from codesign.profiler.timing import Rule, Sampling, Timer, Work, take_round, warm_up

FIRST_SITES = ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex")
OTHER_ERRORS = (
    AttributeError("gone"),
    OSError(5, "io"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    TypeError("x"),
)


def survey(fake: FakeNvml) -> tuple[dict[str, object], list[str]]:
    """Return every reading of the first GPU by name, or that there is no GPU, and what was warned of."""
    warnings: list[str] = []
    seen = open_devices(warnings.append, Reading(fake))
    if seen.found.value is None:
        return {"gpus": seen.found, "driver": seen.driver}, warnings
    gpu = seen.found.value[0]
    state = gpu.state()
    gpu.state()
    readings = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {"driver": seen.driver, **gpu.identity(), **readings}, warnings


def test_the_matrix_is_whole():
    assert set(NVML_CODES) == {*range(1, 31), 999}
    assert len(NVML_CODES) == 31
    assert len(CALL_SITES) >= 12
    assert set(GPU_CALL_SITES) | {*FIRST_SITES, "nvmlSystemGetDriverVersion"} == set(CALL_SITES)


@pytest.mark.parametrize("site", CALL_SITES)
@pytest.mark.parametrize("code", NVML_CODES)
def test_every_code_at_every_call_site_is_a_named_reason(code, site):
    readings, warnings = survey(FakeNvml({site: FakeNvmlError(code)}))
    missing = {name: one for name, one in readings.items() if one.value is None}
    assert missing
    for one in missing.values():
        assert one.why == f"NVML: {NVML_CODES[code].name} ({site}); fix: {NVML_CODES[code].fix}"
    if site in FIRST_SITES:
        assert "gpus" in missing
    else:
        assert len(missing) <= 2  # a clock or memory function gives two values
        assert len(readings) - len(missing) >= len(STATE_FIELDS)
    assert len(warnings) == (1 if site in GPU_CALL_SITES else 0)


@pytest.mark.parametrize("site", CALL_SITES)
@pytest.mark.parametrize("error", OTHER_ERRORS, ids=lambda error: type(error).__name__)
def test_errors_that_are_not_of_nvml_are_reasons_too(error, site):
    readings, _ = survey(FakeNvml({site: error}))
    reasons = [one.why for one in readings.values() if one.value is None]
    assert reasons
    assert all(type(error).__name__ in reason for reason in reasons)


def test_a_code_that_is_new_keeps_its_number():
    readings, _ = survey(FakeNvml({"nvmlDeviceGetName": FakeNvmlError(4711)}))
    assert "error code 4711" in readings["name"].why


@pytest.mark.parametrize("site", GPU_CALL_SITES)
def test_garbage_instead_of_a_value_is_a_reason(site):
    garbage = object()
    readings, _ = survey(FakeNvml(answers={site: garbage}))
    texts = {"name", "vbios", "uuid_hash"}
    wrong = [name for name, one in readings.items() if one.value is None]
    kept_as_text = site in ("nvmlDeviceGetName", "nvmlDeviceGetVbiosVersion", "nvmlDeviceGetUUID")
    kept_as_switch = site in ("nvmlDeviceGetEccMode", "nvmlDeviceGetMigMode", "nvmlDeviceGetPersistenceMode")
    assert bool(wrong) != (kept_as_text or kept_as_switch)
    assert texts.isdisjoint(wrong)


@pytest.mark.parametrize("code", NVML_CODES)
def test_timing_does_not_depend_on_telemetry(code):
    def times(fake: FakeNvml) -> tuple[float, ...]:
        clock = FakeClock()
        gpus = open_devices(lambda _: None, Reading(fake)).found.value or ()
        timer = Timer(Work(lambda copy: clock.pass_s(2e-3)), clock)
        sampling = Sampling(warm_up(timer), Rule())
        while sampling.stop_reason() is None:
            for gpu in gpus:
                gpu.state()
            sampling = sampling.add(take_round(timer, sampling.found, sampling.next_sample_count()))
        return sampling.samples_s

    assert times(FakeNvml({site: FakeNvmlError(code) for site in GPU_CALL_SITES})) == times(FakeNvml())
