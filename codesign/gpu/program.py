"""Sources of the GPU kernels, compiled by NVRTC for one architecture, with a cache on disk."""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codesign.errors import CapabilityError
from codesign.files import write_atomic

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
BFLOAT_MIN = "sm_80"


@dataclass(frozen=True, slots=True)
class Program:
    """One translation unit: a folder of `kernels/`, and the values of its CODESIGN_ macros."""

    folder: str
    macros: tuple[tuple[str, int], ...]

    @property
    def path(self) -> Path:
        """Return the file."""
        return kernel_folder() / self.folder / "cuda.cu"

    @property
    def options(self) -> tuple[str, ...]:
        """Return the macros as a compiler takes them."""
        return tuple(f"-DCODESIGN_{name}={value}" for name, value in self.macros)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code for one architecture, and what the compiler said of registers and memory."""

    cubin: bytes
    log: str


def program(folder: str, **macros: int) -> Program:
    """Return the unit of a folder with these macros."""
    return Program(folder, tuple(sorted((name.upper(), int(value)) for name, value in macros.items())))


def kernel_folder() -> Path:
    """Return the folder of the kernels' sources: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "kernels"
    return installed if installed.is_dir() else package.parent / "kernels"


@functools.cache
def source_text(one: Program) -> str:
    """Return the unit with all of our headers in place, so that it can be compiled and cached by its text alone."""
    return _inlined(one.path, set())


def _inlined(path: Path, seen: set[Path]) -> str:
    if path in seen:
        return ""
    seen.add(path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name = line.removeprefix('#include "').removesuffix('"') if line.startswith('#include "') else ""
        nearby = [place / name for place in (path.parent, kernel_folder()) if name and (place / name).is_file()]
        lines.append(_inlined(nearby[0], seen) if nearby else line)
    return "\n".join(line for line in lines if line != "#pragma once") + "\n"


def compile_program(one: Program, architecture: str) -> Compiled:
    """Return machine code, from the cache if it lies there; CapabilityError without NVRTC or if it does not compile."""
    nvrtc = _nvrtc()
    version = "{}.{}".format(*_checked(nvrtc, nvrtc.nvrtcVersion()))
    text = source_text(one)
    key = hashlib.sha256("\n".join((text, *one.options, architecture, version)).encode()).hexdigest()[:32]
    folder = cache_folder()
    code, log = folder / f"{key}.cubin", folder / f"{key}.log"
    if code.is_file() and log.is_file():
        return Compiled(code.read_bytes(), log.read_text(encoding="utf-8"))
    made = _compile(nvrtc, one, text, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(log, made.log)
    write_atomic(code, made.cubin)
    return made


def cache_folder() -> Path:
    """Return where compiled kernels are kept: CODESIGN_CACHE, else the user's cache folder."""
    given = os.environ.get("CODESIGN_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codesign"
    return base / "kernels"


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CapabilityError(
            f"GPU kernels cannot be compiled: {error}. Install them with: pip install codesign[gpu]"
        ) from error
    return nvrtc


def _compile(nvrtc: Any, one: Program, text: str, architecture: str) -> Compiled:
    handle = _checked(nvrtc, nvrtc.nvrtcCreateProgram(text.encode(), f"{one.folder}.cu".encode(), 0, [], []))[0]
    options = [*one.options, f"-arch={architecture}", "-std=c++17", "-default-device", "--ptxas-options=-v"]
    encoded = [option.encode() for option in options]
    (status,) = nvrtc.nvrtcCompileProgram(handle, len(encoded), encoded)
    log = _bytes(nvrtc, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, handle).decode(errors="replace")
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CapabilityError(f"{one.folder} does not compile for {architecture}: {log.strip()[:2000]}")
    cubin = _bytes(nvrtc, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, handle)
    _checked(nvrtc, nvrtc.nvrtcDestroyProgram(handle))
    return Compiled(cubin, log.rstrip("\0"))


def _bytes(nvrtc: Any, size_of: Any, copy: Any, handle: Any) -> bytes:
    size: int = _checked(nvrtc, size_of(handle))[0]
    buffer = b" " * size
    _checked(nvrtc, copy(handle, buffer))
    return buffer


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CapabilityError(f"NVRTC failed: {status.name}; check the installation of codesign[gpu].")
    return tuple(values)


def resources(log: str) -> Mapping[str, Mapping[str, int]]:
    """Return what the compiler reports of each kernel, functions that it calls included: registers, bytes spilled."""
    found: dict[str, dict[str, int]] = {}
    kernel: dict[str, int] = {}
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found.setdefault(match[1], {"spilled_bytes": 0})
        elif match := re.search(r"(\d+) bytes spill stores", line):
            kernel["spilled_bytes"] += int(match[1])
        elif match := re.search(r"Used (\d+) registers", line):
            kernel["registers"] = int(match[1])
    return found
