"""A GPU that is emulated: kernels are compiled as C++ and run block by block on this CPU, every access checked."""

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codesign.gpu.launch import Launch
from codesign.gpu.program import Program, kernel_folder

HERE = Path(__file__).parent
COMPILER = "g++"
OPTIONS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-parentheses")
# Each access to memory becomes a call of a hook; libtsan, which has them otherwise, is not linked
CHECKED = ("-O1", "-g", "-fsanitize=thread")


class AccessError(Exception):
    """A kernel touched memory as it must not: a race, out of bounds, not written before, misaligned; or it is stuck."""


class EmulatedGpu:
    """Runs launches at once; few multiprocessors, so that small cases are cut into parts too.

    AccessError from a launch in which a kernel does what a GPU may punish; see access_checks.h. A kernel may not depend
    on the order in which its blocks run: `backwards` turns it round.
    """

    def __init__(self, multiprocessors: int = 4, backwards: bool = False, kernels: Path | None = None) -> None:
        self.multiprocessors = multiprocessors
        self.backwards = backwards
        self.kernels = kernels or kernel_folder()

    def launch(self, what: Launch, arguments: Sequence[Any]) -> None:
        values = [_value(one) for one in arguments]
        grid = _Grid(
            what.grid, self.backwards, what.threads, what.shared_bytes, len(values),
            (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values)),
            (ctypes.c_int64 * len(values))(*(one.nbytes if _is_tensor(one) else 0 for one in arguments)),
        )  # fmt: skip
        library = _library(what.program, self.kernels)
        run = getattr(library, f"{what.kernel}_launch")
        run.restype = ctypes.c_char_p
        if found := run(ctypes.byref(grid)):
            raise AccessError(f"{what.program.folder}, {what.kernel}: {_located(found.decode(), library)}")


class _Grid(ctypes.Structure):
    """Grid of gpu_emulation.h."""

    _fields_ = (
        ("blocks", ctypes.c_int * 3),
        ("backwards", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("arguments", ctypes.c_int),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("bytes", ctypes.POINTER(ctypes.c_int64)),
    )


def _is_tensor(one: Any) -> bool:
    return hasattr(one, "data_ptr")


def _value(one: Any) -> Any:
    if one is None or _is_tensor(one):
        return ctypes.c_void_p(None if one is None else one.data_ptr())
    if isinstance(one, np.generic):
        return np.ctypeslib.as_ctypes_type(one.dtype)(one.item())
    return ctypes.c_float(one) if isinstance(one, float) else ctypes.c_int(one)


def _located(found: str, library: ctypes.CDLL) -> str:
    """Return what was found with the lines of the sources instead of the place in the machine code."""
    said, _, place = found.partition("; code ")
    if not place:
        return said
    command = ["addr2line", "-i", "-s", "-e", library._name, hex(int(place) - 1)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return f"{said}, at {', '.join(line.split()[0] for line in lines if line and 'gpu_emulation' not in line)}"


@functools.cache
def _library(program: Program, kernels: Path) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="codesign-emulated-"))
    source, compiled, made = kernels / program.folder / "cuda.cu", folder / "kernel.o", folder / "kernel.so"
    _compile(source, compiled, *CHECKED, *program.options, "-I", kernels)
    subprocess.run([COMPILER, "-shared", "-Wl,--no-undefined", "-o", made, compiled, _emulation()], check=True)
    return ctypes.CDLL(str(made))


@functools.cache
def _emulation() -> Path:
    made = Path(tempfile.mkdtemp(prefix="codesign-emulation-")) / "emulation.o"
    _compile(HERE / "gpu_emulation.cpp", made, "-O2", "-I", kernel_folder())
    return made


def _compile(source: Path, made: Path, *options: Any) -> None:
    subprocess.run([COMPILER, "-x", "c++", *OPTIONS, *options, "-I", HERE, "-c", "-o", made, source], check=True)
