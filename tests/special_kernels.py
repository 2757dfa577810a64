"""Kernels that need too much memory and keep what they got, and one with a note, as a module of adapters."""

from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase, Kernel, LibraryState, Prepared
from tests.fake_kernels import check_output, gemm, kernel, refuses

MODULE = "tests.special_kernels"
HELD_BYTES = 300 * 2**20
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 12.06 GiB is "
    "free. Process 4242 has 67.19 GiB memory in use."
)
CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
NOTE = "reference code, a hundred times slower"
held: list[np.ndarray] = []
__all__ = ["all_kernels", "check_output", "library_states"]


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError is, which is torch.cuda's too."""


def hungry(error: Exception) -> Any:
    """Return what takes memory that only the end of the process gives back, then fails in its second call."""

    def prepare(case: GemmCase, copies: int) -> Prepared:
        held.append(np.ones(HELD_BYTES, dtype=np.uint8))
        raise error

    return prepare


def greedy(case: GemmCase, copies: int) -> Prepared:
    """Ask NumPy for more than any machine has."""
    held.append(np.ones(HELD_BYTES, dtype=np.uint8))
    np.ones((2**20, 2**40), dtype=np.float32)
    return gemm(1e-4)(case, copies)


def late(case: GemmCase, copies: int) -> Prepared:
    """Run out of memory while samples are taken."""
    prepared = gemm(1e-4)(case, copies)
    calls = iter(range(40))

    def run(copy: int) -> Any:
        if next(calls, None) is None:
            raise OutOfMemoryError(CUDA_TEXT)
        return prepared.run(copy)

    return Prepared(run, copies, prepared.output, prepared.reference, prepared.read_bytes, "bf16")


def all_kernels() -> tuple[Kernel, ...]:
    return (
        kernel("hungry", "cuda", "BF16", hungry(OutOfMemoryError(CUDA_TEXT))),
        kernel("hungry", "torch", "BF16", hungry(RuntimeError(CPU_TEXT))),
        kernel("hungry", "unsaid", "BF16", hungry(MemoryError())),
        kernel("hungry", "numpy", "BF16", greedy),
        kernel("hungry", "late", "BF16", late),
        kernel("hungry", "modest", "BF16", gemm(3e-4)),
        Kernel("noted", "fp8", "FP8", refuses, gemm(3e-4), NOTE),
        kernel("noted", "plain", "BF16", gemm(2e-4)),
    )


def library_states() -> tuple[LibraryState, ...]:
    return (LibraryState("hungry", "1.0", None), LibraryState("noted", "1.0", None))
