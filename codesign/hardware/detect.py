"""What the operating system says about this machine's processor; what it does not say is None."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

# Linux's names of instruction sets that profiles list, by the name that profiles use.
_ISA_FLAGS = {
    "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx_vnni": "avx_vnni", "avx512f": "avx512f",
    "avx512bw": "avx512bw", "avx512vl": "avx512vl", "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16",
    "avx512_vbmi": "avx512vbmi", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16", "neon": "asimd",
    "dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2",
}  # fmt: skip
_VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "0x41": "arm", "0x61": "apple", "0xc0": "ampere"}
_SIZE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor and its memory as the system describes them."""

    title: str
    vendor: str
    machine: str
    isa: tuple[str, ...]
    core_count: int
    cache_bytes: int | None
    memory_bytes: int | None


def detect_processor(root: Path = Path("/")) -> Processor:
    """Return the processor that this process may use; `root` is where /proc and /sys are found."""
    facts = _cpuinfo(_text(root / "proc/cpuinfo"))
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    vendor = facts.get("vendor_id") or facts.get("CPU implementer") or ""
    return Processor(
        title=facts.get("model name") or platform.processor() or platform.machine(),
        vendor=_VENDORS.get(vendor, "generic"),
        machine=platform.machine(),
        isa=tuple(name for name, flag in _ISA_FLAGS.items() if flag in flags),
        core_count=_usable_cores(),
        cache_bytes=_largest_cache_bytes(root / "sys/devices/system/cpu/cpu0/cache"),
        memory_bytes=_memory_bytes(_text(root / "proc/meminfo")),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo(text: str) -> dict[str, str]:
    """Return the fields of the first processor."""
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _largest_cache_bytes(folder: Path) -> int | None:
    """Return the size of the last-level cache, the largest that holds data."""
    sizes = []
    for index in sorted(folder.glob("index*")):
        found = re.fullmatch(r"(\d+)([KMG])", _text(index / "size").strip())
        if found and _text(index / "type").strip() != "Instruction":
            sizes.append(int(found[1]) * _SIZE_UNITS[found[2]])
    return max(sizes, default=None)


def _memory_bytes(text: str) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 2**10 if found else None
