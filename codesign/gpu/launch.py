"""Starting kernels: what a GPU must offer, and the one of cuda.core on PyTorch's tensors."""

import functools
import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from codesign.gpu.program import Program, compile_program


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel of a program, its grid, the threads of a block, and the bytes of shared memory that a block needs."""

    program: Program
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int


class Gpu(Protocol):
    """A machine that runs launches; arguments are tensors, None, int and float (32 bits each), or numbers of numpy."""

    @property
    def multiprocessors(self) -> int:
        """Return how many run blocks."""

    def launch(self, what: Launch, arguments: Sequence[Any]) -> None:
        """Start a kernel; it runs in order with what was started before."""


def core() -> Any:
    """Return cuda.core; versions 0.3 to 0.4 have the same under `experimental` alone."""
    module = importlib.import_module("cuda.core")
    if hasattr(module, "Device"):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("cuda.core.experimental")


class CudaGpu:
    """A GPU by cuda.core, in PyTorch's current stream of the device."""

    def __init__(self, index: int = 0) -> None:
        import torch

        self._core = core()
        self._device = self._core.Device(index)
        self._device.set_current()
        self._index = index
        properties = torch.cuda.get_device_properties(index)
        self.multiprocessors: int = properties.multi_processor_count
        self.architecture = f"sm_{properties.major}{properties.minor}"

    def launch(self, what: Launch, arguments: Sequence[Any]) -> None:
        """Start a kernel, compiled when it is first asked for."""
        import torch

        stream = self._core.Stream.from_handle(torch.cuda.current_stream(self._index).cuda_stream)
        config = self._core.LaunchConfig(grid=what.grid, block=what.threads, shmem_size=what.shared_bytes)
        self._core.launch(stream, config, self._kernel(what.program, what.kernel), *map(_argument, arguments))

    @functools.cache  # noqa: B019 - one object per GPU lives as long as the process
    def _kernel(self, program: Program, name: str) -> Any:
        code = compile_program(program, self.architecture).cubin
        return self._core.ObjectCode.from_cubin(code).get_kernel(name)


def _argument(value: Any) -> Any:
    if value is None:
        return 0
    if isinstance(value, np.generic):
        return value
    if isinstance(value, float):
        return np.float32(value)
    return np.int32(value) if isinstance(value, int) else value.data_ptr()


@functools.cache
def gpu(index: int = 0) -> CudaGpu:
    """Return a GPU of this machine."""
    return CudaGpu(index)
