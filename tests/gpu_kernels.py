"""A kernel that says it runs on a GPU, as a module of adapters; the GPU is what the module pynvml says it is."""

from codesign.profiler.kernel import Kernel, LibraryState
from tests.fake_kernels import check_output, gemm, refuses

MODULE = "tests.gpu_kernels"
__all__ = ["all_kernels", "check_output", "library_states"]


def all_kernels() -> tuple[Kernel, ...]:
    return (Kernel("fakegpu", "mm", "BF16", refuses, gemm(2e-4), device="cuda"),)


def library_states() -> tuple[LibraryState, ...]:
    return (LibraryState("fakegpu", "1.0", None, "cuda"),)
