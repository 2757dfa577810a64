"""The adapters of kernel libraries: one module each, with a table of the kernels that it offers."""

from codesign.profiler.kernel import Kernel, LibraryState
from codesign.profiler.libraries import (
    bitsandbytes,
    bitsandbytes_gpu,
    flash_attn,
    flashinfer,
    gemlite,
    llama_cpp,
    onnxruntime,
    openvino,
    own,
    own_gpu,
    torch_cpu,
    torch_gpu,
    torchao,
    torchao_gpu,
    vllm,
    zentorch,
)
from codesign.profiler.libraries.adapter import Library, kernels_of, state_of

CPU_LIBRARIES: tuple[Library, ...] = (
    own.LIBRARY,
    torch_cpu.LIBRARY,
    onnxruntime.LIBRARY,
    openvino.LIBRARY,
    bitsandbytes.LIBRARY,
    zentorch.LIBRARY,
    torchao.LIBRARY,
)
GPU_LIBRARIES: tuple[Library, ...] = (
    own_gpu.LIBRARY,
    torch_gpu.LIBRARY,
    torchao_gpu.LIBRARY,
    bitsandbytes_gpu.LIBRARY,
    gemlite.LIBRARY,
    vllm.LIBRARY,
    flash_attn.LIBRARY,
    flashinfer.LIBRARY,
)
LIBRARIES = (*CPU_LIBRARIES, *GPU_LIBRARIES)


def all_kernels() -> tuple[Kernel, ...]:
    """Return the kernels of every known library; those of a missing one refuse every case with the reason."""
    return tuple(kernel for library in LIBRARIES for kernel in kernels_of(library))


def library_states() -> tuple[LibraryState, ...]:
    """Return which libraries are here, in which version, and why others are not."""
    return (*(state_of(library) for library in LIBRARIES), llama_cpp.state())
