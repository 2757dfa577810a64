import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from fake_nvml import FakeNvml, FakeNvmlError

from codesign import native
from codesign.cli.doctor import command
from codesign.errors import InputError
from codesign.profiler import discover, doctor
from codesign.profiler.doctor import Diagnosis, examine
from codesign.profiler.kernel import LibraryState
from codesign.profiler.nvml import open_devices
from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry_lines import Telemetry
from tests.command_line import codesign

NO_GPU = Telemetry(
    absent("NVML: library not found; fix: install it"), absent("NVML: library not found; fix: install it")
)
STATES = (
    LibraryState("torch", "2.9.0", None),
    LibraryState("zentorch", None, "not installed; pip install zentorch"),
    LibraryState("torch", None, "there is no driver; install it", "cuda"),
)


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    monkeypatch.setattr(discover, "load_catalog", lambda modules: SimpleNamespace(states=STATES))


def by_name(diagnosis: Diagnosis) -> dict[str, doctor.Finding]:
    return {one.name: one for one in diagnosis.findings}


def test_everything_is_either_here_or_has_reason_use_and_fix(tmp_path):
    diagnosis = examine(tmp_path, NO_GPU)
    assert len(diagnosis.present) + len(diagnosis.missing) == len(diagnosis.findings)
    for one in diagnosis.missing:
        assert one.why
        assert one.needed_for
        assert one.fix
        assert doctor.FIX_MARK not in one.why
    assert {"governor", "energy counters (RAPL)", "NVIDIA driver", "zentorch"} <= {
        one.name for one in diagnosis.missing
    }


def test_topics_are_not_torn_apart():
    topics = [one.topic for one in examine(telemetry=NO_GPU).findings]
    assert len(set(topics)) == sum(a != b for a, b in zip(["", *topics], topics, strict=False))


def test_libraries_are_told_with_version_or_fix():
    found = by_name(examine(telemetry=NO_GPU))
    assert found["torch"].value == "2.9.0"
    assert (found["zentorch"].why, found["zentorch"].fix) == ("not installed", "pip install zentorch")
    assert (found["torch on GPUs"].why, found["torch on GPUs"].fix) == ("there is no driver", "install it")


def test_adapters_that_cannot_be_loaded_are_a_finding(monkeypatch):
    def refuse(modules: tuple[str, ...]) -> None:
        raise InputError("the module cannot be imported.")

    monkeypatch.setattr(discover, "load_catalog", refuse)
    assert by_name(examine(telemetry=NO_GPU))["adapters"].why == "the module cannot be imported"


def test_own_kernels_that_are_not_built_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(native, "absence", lambda: "the native kernels are not built; install a C++17 compiler")
    found = by_name(examine(telemetry=NO_GPU))["codesign"]
    assert (found.value, found.fix) == (None, "install a C++17 compiler")


def seen_by(fake: FakeNvml) -> Telemetry:
    return open_devices(lambda _: None, Reading(fake)).telemetry()


def test_gpus_are_told_with_what_they_lack():
    fake = FakeNvml({"nvmlDeviceGetTotalEnergyConsumption": FakeNvmlError(4)})
    found = by_name(examine(telemetry=seen_by(fake)))
    assert found["0: name"].value == "NVIDIA Test GPU"
    assert found["1: SM clock"].is_here
    assert found["1: energy counter"].fix == "run as root or ask the administrator to allow it"


def test_a_driver_without_devices_is_told_apart():
    found = by_name(examine(telemetry=seen_by(FakeNvml(answers={"nvmlDeviceGetCount": 0}))))
    assert found["NVIDIA driver"].is_here
    assert found["devices"].why == "NVML shows no GPU"


@pytest.mark.parametrize(
    ("relative", "text", "name", "fix"),
    [
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave", "governor", "cpupower"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]", "2 MiB pages", "echo madvise"),
    ],
)
def test_settings_that_slow_kernels_have_a_fix(tmp_path, relative, text, name, fix):
    (tmp_path / relative).parent.mkdir(parents=True)
    (tmp_path / relative).write_text(text)
    found = by_name(examine(tmp_path, NO_GPU))[name]
    assert not found.is_here
    assert fix in found.fix


@pytest.mark.parametrize(("level", "user", "here"), [(2, 1000, True), (4, 1000, False), (4, 0, True)])
def test_performance_counters_depend_on_level_and_user(tmp_path, monkeypatch, level, user, here):
    monkeypatch.setattr(doctor.os, "geteuid", lambda: user)
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/perf_event_paranoid").write_text(f"{level}\n")
    assert by_name(examine(tmp_path, NO_GPU))["performance counters"].is_here == here


def test_good_settings_are_here(tmp_path):
    quota, boost = tmp_path / "sys/fs/cgroup/cpu.max", tmp_path / "sys/devices/system/cpu/cpufreq/boost"
    for path, text in ((quota, "150000 100000"), (boost, "1")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    folder = tmp_path / "sys/class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "5", "max_energy_range_uj": "1000"}.items():
        (folder / name).write_text(text)
    found = by_name(examine(tmp_path, NO_GPU))
    assert found["energy counters (RAPL)"].value == "readable"
    assert found["turbo"].value == "on"
    assert found["may be used"].value.endswith("with a quota of 1.5")


def test_the_command_prints_both_tables():
    done = CliRunner().invoke(command)
    assert done.exit_code == 0
    assert done.output.index("What is here") < done.output.index("What is missing")
    assert "pip install zentorch" in done.output


def test_the_command_prints_one_json_document():
    done = CliRunner().invoke(command, ["--json"])
    document = json.loads(done.output)
    assert document["schema"] == "codesign.doctor"
    assert {one["name"] for one in document["present"]} >= {"torch", "model"}
    assert all(one["value"] is None and one["fix"] for one in document["missing"])


def test_the_command_is_known_to_the_command_line():
    done = codesign("doctor", "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
