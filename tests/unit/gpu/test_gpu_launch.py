"""cuda.core where its versions keep it, and what kernels are given."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from codesign.gpu import launch
from codesign.gpu.launch import CudaGpu, Launch
from codesign.gpu.program import Compiled, program

torch = pytest.importorskip("torch", reason="it holds the memory")


class FakeCore(ModuleType):
    """The part of cuda.core that is used; it notes what is launched."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.launched: list[tuple[object, ...]] = []
        self.Device = lambda index: SimpleNamespace(set_current=lambda: self.launched.append(("device", index)))
        self.Stream = SimpleNamespace(from_handle=lambda handle: ("stream", handle))
        self.LaunchConfig = lambda *, grid, block, shmem_size: (grid, block, shmem_size)
        self.ObjectCode = SimpleNamespace(from_cubin=lambda code: SimpleNamespace(get_kernel=lambda name: (code, name)))
        self.launch = lambda stream, config, kernel, *given: self.launched.append((stream, config, kernel, *given))


@pytest.fixture(params=["cuda.core", "cuda.core.experimental"])
def core(request, monkeypatch):
    fake = FakeCore(request.param)
    monkeypatch.setitem(sys.modules, "cuda.core", ModuleType("cuda.core"))
    monkeypatch.setitem(sys.modules, request.param, fake)
    properties = SimpleNamespace(multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _index: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(launch, "compile_program", lambda one, architecture: Compiled(architecture.encode(), ""))
    return fake


def test_kernels_start_in_the_current_stream_with_arguments_of_their_types(core):
    gpu, values = CudaGpu(), torch.zeros(4)
    gpu.launch(Launch(program("roofs"), "read_all", (3, 2, 1), 512, 64), (values, None, 5, 0.5, np.int64(2**40)))
    device, (stream, config, kernel, *given) = core.launched
    assert device == ("device", 0)
    assert (stream, config, kernel) == (("stream", 77), ((3, 2, 1), 512, 64), (b"sm_90", "read_all"))
    assert given == [values.data_ptr(), 0, 5, 0.5, 2**40]
    assert [type(one) for one in given] == [int, int, np.int32, np.float32, np.int64]
    assert gpu.multiprocessors == 132
