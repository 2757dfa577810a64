import dataclasses
import getpass
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import ANSWERS, FakeNvml

from codesign.profiler import software
from codesign.profiler.environment import PRIVATE, capture_environment, env_block, scrub
from codesign.profiler.nvml import open_devices
from codesign.profiler.reading import Reading, absent, plain_reading
from codesign.profiler.system import CPU, SYSTEM, cpu_quota, kernel_flags
from codesign.profiler.telemetry_lines import Telemetry

NO_GPU = Telemetry(absent("no driver"), absent("no driver"))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Return every field of a block by its path: plain values, or the whole of an absent one."""
    if isinstance(value, dict) and set(value) != {"value", "why"}:
        for key, one in value.items():
            yield from leaves(one, f"{name}.{key}")
    else:
        yield name, value


def write(root: Path, relative: str, text: str) -> None:
    (root / relative).parent.mkdir(parents=True, exist_ok=True)
    (root / relative).write_text(text)


def test_without_proc_and_sys_every_absent_field_has_a_reason(tmp_path):
    block = env_block(capture_environment(NO_GPU, tmp_path), shareable=False)
    fields = dict(leaves(block))
    assert set(block) >= {"cpu", "system", "software", "gpu_driver", "gpus", "run"}
    assert None not in fields.values()
    gone = {name: one for name, one in fields.items() if isinstance(one, dict) and "why" in one}
    assert {".cpu.model", ".cpu.governor", ".cpu.caches", ".system.memory_bytes", ".gpus"} <= set(gone)
    assert all(one["value"] is None and len(one["why"]) > 5 for one in gone.values())


def test_the_block_of_this_machine_is_strict_json():
    block = env_block(capture_environment(NO_GPU), shareable=False)
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert block["cpu"]["processor_count"] == os.cpu_count()
    assert block["software"]["python"].startswith("CPython 3.")
    assert re.match(r"\d{4}-\d\d-\d\dT.*\+00:00$", block["run"]["start_utc"])


def test_gpus_are_in_the_block_with_a_hashed_id():
    seen = open_devices(lambda _: None, Reading(FakeNvml())).telemetry()
    block = env_block(capture_environment(seen), shareable=False)
    assert block["gpu_driver"] == "580.65.06"
    assert [one["name"] for one in block["gpus"]] == ["NVIDIA Test GPU"] * 2
    assert ANSWERS["nvmlDeviceGetUUID"].decode() not in json.dumps(block)


def test_a_shareable_block_tells_no_host_user_path_or_id(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/home/alice/lib/libjemalloc.so:/opt/x.so")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0a1b2c3d-1111-2222-3333-444455556666")
    monkeypatch.setattr(socket, "gethostname", lambda: "lab-17")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    environment = capture_environment(NO_GPU)
    environment = dataclasses.replace(
        environment, private={**environment.private, "host_name": Reading("lab-17"), "user_name": Reading("alice")}
    )
    seen = dataclasses.replace(
        environment, run={**environment.run, "note": Reading(["run by alice on lab-17", {"in": r"C:\Users\alice\x"}])}
    )
    full, shared = (json.dumps(env_block(seen, shareable)) for shareable in (False, True))
    secrets = ("alice", "lab-17", "/home", "/opt", "0a1b2c3d", "C:\\\\", str(Path.home()) + "/")
    assert [word for word in secrets if word in full] != []
    assert [word for word in secrets if word in shared] == []
    assert re.findall(r"""["\s:=(]/\w""", shared) == []
    assert "<host_name>" in shared


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/bob/a.so, then go", "see <path>, then go"),
        ("LIB=/opt/x.so", "LIB=<path>"),
        ("~/secret", "<path>"),
        ("33 GB/s and/or 1/2", "33 GB/s and/or 1/2"),
        ("MIG-0a1b2c3d-1111-2222-3333-444455556666", "<device id>"),
        ("bobcat and bob", "bobcat and <user_name>"),
    ],
)
def test_texts_are_scrubbed_of_paths_ids_and_names(text, expected):
    assert scrub({"a": [text]}, {"<user_name>": "bob"}) == {"a": [expected]}


def test_numbers_pass_the_scrubbing():
    assert scrub([1, 2.5, None, True], {"<user_name>": "1"}) == [1, 2.5, None, True]


def test_the_processor_is_read_from_a_fake_root(tmp_path):
    write(tmp_path, "proc/cpuinfo", "model name\t: Test CPU\nflags\t\t: sse avx2 avx512_vnni\n\nmodel name\t: other\n")
    cache = "sys/devices/system/cpu/cpu0/cache/index2"
    for name, text in {"level": "3", "type": "Unified", "size": "32768K", "shared_cpu_list": "0-7"}.items():
        write(tmp_path, f"{cache}/{name}", f"{text}\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "3700000\n")
    write(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", "0\n")
    write(tmp_path, "sys/devices/system/node/node1/cpulist", "8-15\n")
    cpu = {name: reader(tmp_path).value for name, reader in CPU.items()}
    assert (cpu["model"], cpu["flags"]) == ("Test CPU", ["avx2", "avx512_vnni"])
    assert cpu["caches"] == [{"level": 3, "type": "Unified", "bytes": 32 * 2**20, "shared_by": "0-7"}]
    assert (cpu["governor"], cpu["max_clock_hz"], cpu["turbo"]) == ("powersave", 3.7e9, True)
    assert cpu["numa_nodes"] == {"node1": "8-15"}


def test_arm_features_are_flags_too(tmp_path):
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert kernel_flags(tmp_path).value == ["asimd", "asimddp", "i8mm"]


def test_the_system_is_read_from_a_fake_root(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal:       1024 kB\nMemAvailable:    512 kB\n")
    write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    write(tmp_path, "proc/loadavg", "1.25 0.80 0.40 2/190 4242\n")
    write(tmp_path, "etc/os-release", 'NAME="X"\nPRETTY_NAME="X 1 (y)"\n')
    write(tmp_path, "run/.containerenv", "")
    system = {name: reader(tmp_path).value for name, reader in SYSTEM.items()}
    assert (system["memory_bytes"], system["available_bytes"]) == (2**20, 2**19)
    assert system["transparent_huge_pages"] == "madvise"
    assert system["load_average"] == [1.25, 0.8, 0.4]
    assert (system["distribution"], system["container"]) == ("X 1 (y)", "podman")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_both_kinds_of_control_groups(tmp_path, files, quota):
    for relative, text in files.items():
        write(tmp_path, relative, text)
    reading = cpu_quota(tmp_path)
    assert reading.value == quota
    assert (reading.why is None) == (quota is not None)


@pytest.mark.parametrize("text", ["", "garbage", "[", ": :\n", "12x"])
def test_garbage_in_files_is_absent_with_a_reason(tmp_path, text):
    names = ("proc/loadavg", "proc/sys/vm/nr_hugepages", "sys/kernel/mm/transparent_hugepage/enabled", "proc/cpuinfo")
    for relative in (*names, "sys/fs/cgroup/cpu.max", "proc/meminfo", "etc/os-release"):
        write(tmp_path, relative, text)
    for reader in (*CPU.values(), *SYSTEM.values()):
        reading = reader(tmp_path)
        assert (reading.value is None) == (reading.why is not None)
    assert SYSTEM["reserved_huge_pages"](tmp_path).value is None
    assert SYSTEM["transparent_huge_pages"](tmp_path).value is None


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert SYSTEM["perf_event_paranoid"](tmp_path).why == "perf_event_paranoid may not be read by this user"


def test_programs_that_are_missing_fail_or_hang_are_reasons(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(software, "PROGRAM_TIMEOUT_S", 0.2)
    scripts = {"good": "echo tool 12.2.0-14+deb", "fails": "exit 3", "hangs": "exec /bin/sleep 5", "mute": "echo hello"}
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    readings = {name: software.program_version(name) for name in (*scripts, "none")}
    assert readings["good"] == Reading("12.2.0-14+deb")
    assert readings["fails"].why == "fails ended with code 3"
    assert "does not answer (TimeoutExpired)" in readings["hangs"].why
    assert readings["mute"].why == "mute prints no version"
    assert readings["none"].why == "none is not installed"


def test_nvcc_prints_its_version_late(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho nvcc: compiler\necho 'Cuda tools, release 13.0, V13.0.1'\n")
    (tmp_path / "nvcc").chmod(0o755)
    assert software.program_version("nvcc") == Reading("13.0")


def test_packages_have_a_version_or_a_fix():
    assert software.package_version("numpy").value
    assert (
        software.package_version("no-such-package-here").why == "not installed; fix: pip install no-such-package-here"
    )


def test_only_known_variables_are_recorded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    found = software.variables().value
    assert found["OMP_NUM_THREADS"] == "2"
    assert "hunter2" not in str(found)


def test_the_commit_is_that_of_a_checkout_only(tmp_path, monkeypatch):
    assert "no checkout" in software.commit(tmp_path).why
    (tmp_path / ".git").mkdir()
    answers = {"rev-parse": Reading("abc123"), "status": Reading("")}
    monkeypatch.setattr(software, "program_output", lambda *words: next(answers[w] for w in words if w in answers))
    assert software.commit(tmp_path) == Reading("abc123")
    answers["status"] = Reading(" M file.py")
    assert software.commit(tmp_path) == Reading("abc123-changed")
    answers["rev-parse"] = absent("git is not installed")
    assert software.commit(tmp_path).why == "git is not installed"


def test_a_reading_is_its_value_or_null_with_why():
    assert plain_reading(Reading(0)) == 0
    assert plain_reading(absent("gone")) == {"value": None, "why": "gone"}


def test_turbo_is_read_from_either_driver(tmp_path):
    write(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", "1\n")
    assert CPU["turbo"](tmp_path) == Reading(False)
    write(tmp_path, "sys/devices/system/cpu/cpufreq/boost", "1\n")
    assert CPU["turbo"](tmp_path) == Reading(True)


def test_a_system_without_names_and_affinity_says_so(tmp_path, monkeypatch):
    def refuse() -> str:
        raise KeyError("uid")

    monkeypatch.setitem(PRIVATE, "user_name", refuse)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    environment = capture_environment(NO_GPU, tmp_path)
    assert environment.private["user_name"].why == "the system does not say (KeyError)"
    assert environment.cpu["affinity"].why == "this system has no affinity masks"
    assert "<user_name>" not in json.dumps(env_block(environment, shareable=True))
