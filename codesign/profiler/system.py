"""What Linux says about processors, memory and limits: small readers of /proc and /sys, each with its reason."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codesign.profiler.reading import Reading, absent
from codesign.units import KIBI, KILO

CPU_FOLDER, NODE_FOLDER = "sys/devices/system/cpu", "sys/devices/system/node"
# The instruction sets that kernels ask for; names as in /proc/cpuinfo (x86 flags, Arm features).
KERNEL_FLAGS = frozenset(
    (
        "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
        "avx512_bf16", "avx512_fp16", "avx512vbmi", "avx512_vbmi2", "amx_tile", "amx_int8", "amx_bf16",
        "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16",
    )
)  # fmt: skip
NO_CPUFREQ = "the kernel offers no frequency control (a virtual machine, or no driver for it)"


def read_file(path: Path, why: str) -> Reading[str]:
    """Return the text of a small file, or why there is none."""
    try:
        text = path.read_text(errors="replace").strip()
    except PermissionError:
        return absent(f"{path.name} may not be read by this user")
    except OSError:
        return absent(why)
    return Reading(text) if text else absent(f"{path.name} is empty")


def from_file(relative: str, why: str, convert: Callable[[str], Any] = str) -> Callable[[Path], Reading[Any]]:
    """Return a reader of one file under the root, whose text `convert` turns into a value."""

    def reader(root: Path) -> Reading[Any]:
        return converted(read_file(root / relative, why), convert, why)

    return reader


def converted(text: Reading[str], convert: Callable[[str], Any], why: str) -> Reading[Any]:
    """Return what `convert` makes of a text; a text it does not understand is absent."""
    if text.value is None:
        return text
    try:
        value = convert(text.value)
    except (ValueError, IndexError, ArithmeticError) as error:
        return absent(f"not understood ({type(error).__name__}: {error})")
    return absent(why) if value is None else Reading(value)


def cpuinfo(*keys: str) -> Callable[[Path], Reading[str]]:
    """Return a reader of the first of `keys` that the first processor of /proc/cpuinfo has."""
    why = f"cpuinfo names no {keys[0]}"

    def pick(text: str) -> str | None:
        pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
        found = {key.strip(): value.strip() for key, value in pairs}
        return next((found[key] for key in keys if found.get(key)), None)

    return from_file("proc/cpuinfo", why, pick)


def kernel_flags(root: Path) -> Reading[list[str]]:
    """Return the instruction sets that matter to kernels, as the kernel names them."""
    flags = cpuinfo("flags", "Features")(root)
    return converted(flags, lambda text: sorted(KERNEL_FLAGS & set(text.split())), "no flags")


def caches(root: Path) -> Reading[list[dict[str, Any]]]:
    """Return the caches of the first processor: level, type, bytes and which processors share it."""
    found = []
    for folder in sorted((root / CPU_FOLDER / "cpu0/cache").glob("index*")):
        names = ("level", "type", "size", "shared_cpu_list")
        level, kind, amount, shared = (read_file(folder / name, "").value or "" for name in names)
        if level.isdecimal() and amount[:-1].isdecimal() and amount.endswith("K"):
            found.append({"level": int(level), "type": kind, "bytes": int(amount[:-1]) * KIBI, "shared_by": shared})
    return Reading(found) if found else absent("the kernel describes no caches")


def numa_nodes(root: Path) -> Reading[dict[str, str]]:
    """Return the processors of each memory node."""
    nodes = {folder.name: read_file(folder / "cpulist", "").value for folder in (root / NODE_FOLDER).glob("node[0-9]*")}
    known = {name: cpus for name, cpus in sorted(nodes.items()) if cpus}
    return Reading(known) if known else absent("the kernel describes no memory nodes")


def turbo(root: Path) -> Reading[bool]:
    """Return whether clocks may exceed the base clock."""
    boost = from_file(f"{CPU_FOLDER}/cpufreq/boost", NO_CPUFREQ, lambda text: text == "1")(root)
    if boost.value is not None:
        return boost
    return from_file(f"{CPU_FOLDER}/intel_pstate/no_turbo", NO_CPUFREQ, lambda text: text == "0")(root)


def affinity(_root: Path) -> Reading[list[int]]:
    """Return the processors that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return absent("this system has no affinity masks")
    return Reading(sorted(os.sched_getaffinity(0)))


def cpu_quota(root: Path) -> Reading[float]:
    """Return the processors' worth of time that the control group allows."""
    new = read_file(root / "sys/fs/cgroup/cpu.max", "")
    if new.value is not None:
        return converted(new, _share, "no limit is set")
    folder = root / "sys/fs/cgroup/cpu"
    quota = read_file(folder / "cpu.cfs_quota_us", "no control group limits it")
    period = read_file(folder / "cpu.cfs_period_us", "no control group limits it")
    both = quota if quota.value is None else Reading(f"{quota.value} {period.value}")
    return converted(both, _share, "no limit is set")


def _share(text: str) -> float | None:
    quota, period = text.split()
    return None if quota in ("max", "-1") else int(quota) / int(period)


def chosen_word(text: str) -> str:
    """Return the word in brackets: the setting of files that list all of them."""
    return text[text.index("[") + 1 : text.index("]")]


def meminfo_bytes(name: str) -> Callable[[Path], Reading[int]]:
    """Return a reader of one line of /proc/meminfo, in bytes."""
    why = f"meminfo names no {name}"

    def pick(text: str) -> int | None:
        lines = (line.split() for line in text.splitlines())
        return next((int(words[1]) * KIBI for words in lines if words[0] == f"{name}:"), None)

    return from_file("proc/meminfo", why, pick)


def container(root: Path) -> Reading[str]:
    """Return what kind of container this looks like."""
    marks = {".dockerenv": "docker", "run/.containerenv": "podman", "singularity": "singularity"}
    found = next((name for mark, name in marks.items() if (root / mark).exists()), None)
    return Reading(found) if found else absent("no mark of a container")


CPU: Mapping[str, Callable[[Path], Reading[Any]]] = {
    "model": cpuinfo("model name", "Model", "Hardware", "CPU part"),
    "vendor": cpuinfo("vendor_id", "CPU implementer"),
    "family": cpuinfo("cpu family", "CPU architecture"),
    "model_number": cpuinfo("model", "CPU variant"),
    "microcode": cpuinfo("microcode"),
    "architecture": lambda _root: Reading(platform.machine()),
    "flags": kernel_flags,
    "processor_count": lambda _root: Reading(os.cpu_count()),
    "affinity": affinity,
    "caches": caches,
    "numa_nodes": numa_nodes,
    "smt": from_file(f"{CPU_FOLDER}/smt/active", "the kernel says nothing of it", lambda text: text == "1"),
    "governor": from_file(f"{CPU_FOLDER}/cpu0/cpufreq/scaling_governor", NO_CPUFREQ),
    "max_clock_hz": from_file(
        f"{CPU_FOLDER}/cpu0/cpufreq/cpuinfo_max_freq", NO_CPUFREQ, lambda text: float(text) * KILO
    ),
    "turbo": turbo,
    "quota_cpu_count": cpu_quota,
}
SYSTEM: Mapping[str, Callable[[Path], Reading[Any]]] = {
    "kernel": lambda _root: Reading(f"{platform.system()} {platform.release()}"),
    "distribution": from_file(
        "etc/os-release",
        "there is no os-release",
        lambda text: next(
            (line.split("=", 1)[1].strip('"') for line in text.splitlines() if line.startswith("PRETTY_NAME=")), None
        ),
    ),
    "container": container,
    "memory_bytes": meminfo_bytes("MemTotal"),
    "available_bytes": meminfo_bytes("MemAvailable"),
    "transparent_huge_pages": from_file(
        "sys/kernel/mm/transparent_hugepage/enabled", "the kernel offers no transparent huge pages", chosen_word
    ),
    "reserved_huge_pages": from_file("proc/sys/vm/nr_hugepages", "the kernel offers no huge pages", int),
    "load_average": from_file(
        "proc/loadavg", "the kernel tells no load", lambda text: [float(word) for word in text.split()[:3]]
    ),
    "cpu_pressure": from_file("proc/pressure/cpu", "the kernel was built without pressure information"),
    "memory_pressure": from_file("proc/pressure/memory", "the kernel was built without pressure information"),
    "perf_event_paranoid": from_file("proc/sys/kernel/perf_event_paranoid", "the kernel offers no perf events", int),
    "address_space_randomization": from_file("proc/sys/kernel/randomize_va_space", "the kernel does not say", int),
}
