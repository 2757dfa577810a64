"""What adapters of GPU libraries share: whether there is a GPU, and tensors on it."""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import AttentionCase, Case
from codesign.profiler.libraries import torch_cpu
from codesign.profiler.libraries.adapter import version_of
from codesign.profiler.repeated import without_repetition
from codesign.profiler.weights import Float32

DEVICE = "cuda"


DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@functools.cache
def problem() -> str | None:
    """Return why kernels of a GPU cannot run here, None if they can; without importing PyTorch, which takes seconds."""
    version = version_of("torch")
    if version is None:
        return "PyTorch is not installed; pip install torch"
    if version.endswith("+cpu"):
        return f"PyTorch {version} is built without CUDA; install the one for your driver"
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"there is no NVIDIA driver here ({DRIVER}); install it, or start the container with the GPU"
    return None


@functools.cache
def capability() -> tuple[int, int]:
    """Return the compute capability of the GPU."""
    import torch

    found: tuple[int, int] = torch.cuda.get_device_capability()
    return found


def needs_capability(major: int, minor: int) -> Callable[[Case], str | None]:
    """Return the limit of a kernel for GPUs from a compute capability on."""

    def limit(_case: Case) -> str | None:
        have = capability()
        if have >= (major, minor):
            return None
        return f"needs compute capability {major}.{minor}, this GPU has {have[0]}.{have[1]}"

    return limit


def one_token(case: AttentionCase) -> str | None:
    """Return why a case is not decode, the only attention that is measured on GPUs."""
    return None if case.q_tokens == 1 else "only decode is measured here: one new token at a time"


def start(_threads: int) -> None:
    """Keep PyTorch from recording gradients, and from rounding fp32 products."""
    import torch

    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False


def tensor(values: Float32, precision: str) -> Any:
    """Return a tensor on the GPU; what `values` repeat without memory of their own is repeated there."""
    once = torch_cpu.tensor(without_repetition(values), precision).to(DEVICE)
    return once.expand(values.shape).contiguous()


def integers(codes: np.ndarray[Any, Any], kind: type[np.integer[Any]] = np.int8) -> Any:
    """Return a tensor of integers on the GPU."""
    return torch_cpu.integers(codes, kind).to(DEVICE)


def feeder(precision: str) -> Any:
    """Return what makes activations of a precision on the GPU."""
    return lambda x, _case: tensor(x, precision)


def to_float32(output: Any) -> Float32:
    """Return what a kernel made as float32 on the CPU."""
    values: Float32 = output.float().cpu().numpy()
    return values
