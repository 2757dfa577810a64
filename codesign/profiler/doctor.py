"""What is here to measure with, what is missing, what it would be good for, and the one line that brings it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codesign.errors import CodesignError
from codesign.profiler.kernel import LibraryState
from codesign.profiler.rapl import POWERCAP, RaplMeter
from codesign.profiler.reading import Reading, absent
from codesign.profiler.software import package_version, program_version
from codesign.profiler.system import CPU, SYSTEM
from codesign.profiler.telemetry import read_telemetry
from codesign.profiler.telemetry_lines import Telemetry
from codesign.units import format_gib

ROOT = Path("/")
FIX_MARK = "; fix: "
NO_FIX = "nothing to do from here"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for: what it is, or why it is not here, what that prevents and what to do."""

    topic: str
    name: str
    value: str | None
    why: str | None = None
    needed_for: str | None = None
    fix: str | None = None

    @property
    def is_here(self) -> bool:
        """Return whether it was found."""
        return self.value is not None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked for, in the order of the topics."""

    findings: tuple[Finding, ...]

    @property
    def present(self) -> tuple[Finding, ...]:
        """Return what is here."""
        return tuple(one for one in self.findings if one.is_here)

    @property
    def missing(self) -> tuple[Finding, ...]:
        """Return what is not here."""
        return tuple(one for one in self.findings if not one.is_here)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to look for: how, what it is needed for, and the fix where the reader's reason names none."""

    topic: str
    name: str
    read: Callable[[Path], Reading[Any]]
    needed_for: str
    fix: str


def examine(root: Path = ROOT, telemetry: Telemetry | None = None) -> Diagnosis:
    """Return what is here; `root` is where /proc and /sys are looked for."""
    seen = telemetry if telemetry is not None else read_telemetry(lambda _: None)
    findings = [
        *(_found(item, root) for item in ITEMS),
        *_native_findings(),
        *_gpu_findings(seen),
        *_library_findings(),
    ]
    order = list(dict.fromkeys(one.topic for one in findings))
    return Diagnosis(tuple(sorted(findings, key=lambda one: order.index(one.topic))))


def _found(item: Item, root: Path) -> Finding:
    return _finding(item.topic, item.name, item.read(root), item.needed_for, item.fix)


def _finding(topic: str, name: str, reading: Reading[Any], needed_for: str, fix: str) -> Finding:
    if reading.value is not None:
        return Finding(topic, name, _text(reading.value))
    why, _, told = (reading.why or "no reason is known").partition(FIX_MARK)
    return Finding(topic, name, None, why, needed_for, told or fix)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _program(name: str) -> Callable[[Path], Reading[str]]:
    return lambda _root: program_version(name)


def _package(name: str) -> Callable[[Path], Reading[str]]:
    return lambda _root: package_version(name)


def _gib(reader: Callable[[Path], Reading[int]]) -> Callable[[Path], Reading[str]]:
    def read(root: Path) -> Reading[str]:
        reading = reader(root)
        return absent(reading.why or "") if reading.value is None else Reading(format_gib(reading.value))

    return read


def _usable(root: Path) -> Reading[str]:
    """Return the processors that this process may use, and the quota of its control group where one is set."""
    allowed, quota = CPU["affinity"](root), CPU["quota_cpu_count"](root)
    if allowed.value is None:
        return allowed
    limit = "" if quota.value is None else f", with a quota of {quota.value:g}"
    return Reading(f"{len(allowed.value)} of {os.cpu_count()} ({_text(allowed.value)}){limit}")


def _rapl(root: Path) -> Reading[str]:
    reading = RaplMeter(root / POWERCAP.relative_to("/")).read_joule()
    return absent(reading.why or "") if reading.value is None else Reading("readable")


def _perf(root: Path) -> Reading[str]:
    level = SYSTEM["perf_event_paranoid"](root)
    if level.value is None:
        return absent(level.why or "")
    if level.value <= 2 or os.geteuid() == 0:
        return Reading(f"user counters allowed (perf_event_paranoid {level.value})")
    return absent(f"perf_event_paranoid is {level.value}; fix: sysctl kernel.perf_event_paranoid=2")


def _huge_pages(root: Path) -> Reading[str]:
    mode = SYSTEM["transparent_huge_pages"](root)
    if mode.value == "never":
        return absent("they are switched off; fix: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    return mode


def _governor(root: Path) -> Reading[str]:
    governor = CPU["governor"](root)
    if governor.value in (None, "performance"):
        return governor
    return absent(f'the governor is "{governor.value}"; fix: cpupower frequency-set -g performance')


BUILD = "building codesign's own kernels"
CROSS = "tests of the Arm kernels on this machine"
STEADY = "knowing that clocks are steady"
ITEMS: Sequence[Item] = (
    Item("processor", "model", CPU["model"], "naming the machine", NO_FIX),
    Item("processor", "instruction sets", CPU["flags"], "choosing the fastest kernels", NO_FIX),
    Item("processor", "may be used", _usable, "pinning threads", NO_FIX),
    Item("processor", "load now", SYSTEM["load_average"], "telling a busy machine", NO_FIX),
    Item("memory", "total", _gib(SYSTEM["memory_bytes"]), "sizing cases", NO_FIX),
    Item("clocks", "governor", _governor, STEADY, "set it on the host, or trust the spread of the samples"),
    Item("clocks", "turbo", CPU["turbo"], STEADY, "look at the host, or trust the spread of the samples"),
    Item("permissions", "2 MiB pages", _huge_pages, "full memory bandwidth of packed weights", NO_FIX),
    Item("permissions", "energy counters (RAPL)", _rapl, "energy of the processor",
         "measure on the bare machine"),
    Item("permissions", "performance counters", _perf, "cache and instruction counts with perf", NO_FIX),
    Item("compilers", "c++", _program("c++"), BUILD, "apt-get install g++"),
    Item("compilers", "cmake", _program("cmake"), BUILD, "pip install cmake"),
    Item("compilers", "ninja", _program("ninja"), BUILD, "pip install ninja"),
    Item("compilers", "aarch64-linux-gnu-g++", _program("aarch64-linux-gnu-g++"), CROSS,
         "apt-get install g++-aarch64-linux-gnu"),
    Item("compilers", "qemu-aarch64", _program("qemu-aarch64"), CROSS, "apt-get install qemu-user"),
    Item("compilers", "nvcc", _program("nvcc"), "building CUDA kernels", "install the CUDA toolkit"),
    Item("compilers", "hipcc", _program("hipcc"), "building ROCm kernels", "install ROCm"),
    Item("tools", "nvtx", _package("nvtx"), "ranges in Nsight", "pip install nvtx"),
    Item("tools", "ray", _package("ray"), "--cluster: quantize and sensitivity on many machines or GPUs",
         'pip install "codesign[cluster]"'),
    Item("tools", "perf", _program("perf"), "cache and instruction counts", "apt-get install linux-perf"),
)  # fmt: skip


def _native_findings() -> list[Finding]:
    from codesign.native import absence, load

    why = absence()
    if why is not None:
        reason, _, fix = why.partition("; ")
        return [_finding("own kernels", "codesign", absent(reason), "codesign's own kernels", fix or NO_FIX)]
    module = load()
    return [Finding("own kernels", "codesign", f"best variant here: {module.isa_text(module.isa_best())}")]


def _gpu_findings(telemetry: Telemetry) -> list[Finding]:
    purpose = "clocks, power and energy of NVIDIA GPUs"
    driver = _finding("GPUs", "NVIDIA driver", telemetry.driver, purpose, "install the NVIDIA driver")
    if telemetry.gpus.value is None:
        return [driver, _finding("GPUs", "devices", telemetry.gpus, purpose, NO_FIX)] if driver.is_here else [driver]
    found = [driver]
    for gpu in telemetry.gpus.value:
        named = {
            "name": gpu.identity["name"], "SM clock": gpu.state.sm_clock_hz, "energy counter": gpu.state.energy_joule,
        }  # fmt: skip
        found += [_finding("GPUs", f"{gpu.index}: {name}", one, purpose, NO_FIX) for name, one in named.items()]
    return found


def _library_findings() -> list[Finding]:
    from codesign.profiler.discover import adapter_modules, load_catalog

    try:
        states = load_catalog(adapter_modules()).states
    except CodesignError as error:
        return [
            _finding("libraries", "adapters", absent(str(error).rstrip(".")), "measuring kernels", "reinstall codesign")
        ]
    return [_library_finding(one) for one in states]


def _library_finding(state: LibraryState) -> Finding:
    """Return what is known of a library; adapters end their reason with what helps."""
    name = state.name if state.device == "cpu" else f"{state.name} on GPUs"
    why, _, fix = (state.reason or "").partition("; ")
    return _finding(
        "libraries",
        name,
        Reading(state.version, why or None),
        f"kernels of {name}",
        fix.removeprefix("fix: ") or NO_FIX,
    )
