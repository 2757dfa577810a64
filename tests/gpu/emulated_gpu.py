"""A GPU that is emulated: kernels are compiled as C++ and run block by block on this CPU."""

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codesign.gpu.launch import Launch
from codesign.gpu.program import Program, kernel_folder

HERE = Path(__file__).parent
COMPILER = "g++"


class EmulatedGpu:
    """Runs launches at once; few multiprocessors, so that small cases are cut into parts too."""

    def __init__(self, multiprocessors: int = 4) -> None:
        self.multiprocessors = multiprocessors

    def launch(self, what: Launch, arguments: Sequence[Any]) -> None:
        values = [_value(one) for one in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        run = getattr(_library(what.program), f"{what.kernel}_launch")
        run((ctypes.c_int * 3)(*what.grid), what.threads, what.shared_bytes, pointers)


def _value(one: Any) -> Any:
    if one is None or hasattr(one, "data_ptr"):
        return ctypes.c_void_p(None if one is None else one.data_ptr())
    return ctypes.c_float(one) if isinstance(one, float) else ctypes.c_int(one)


@functools.cache
def _library(program: Program) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="codesign-emulated-"))
    made = folder / "kernel.so"
    subprocess.run(
        [COMPILER, "-x", "c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
         "-Wno-parentheses", *program.options, "-I", kernel_folder(), "-I", HERE, "-o", made, program.path],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(made))
