"""Which errors mean that memory did not suffice, and what they say was wanted."""

import numpy as np
import pytest

from codesign.profiler.memory_errors import memory_text
from tests.special_kernels import CPU_TEXT, CUDA_TEXT, OutOfMemoryError


class AcceleratorError(RuntimeError):
    """As torch.AcceleratorError is."""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("std::bad_alloc"), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (AcceleratorError("CUDA error: out of memory"), "out of memory"),
        (
            OutOfMemoryError(CUDA_TEXT),
            "out of memory: 21474836480 bytes (20 GiB) were wanted, 12.1 GiB were free",
        ),
        (OutOfMemoryError("no words"), "out of memory"),
        (RuntimeError(CPU_TEXT), "out of memory: 4000000000000 bytes (3,725 GiB) were wanted"),
        (
            OutOfMemoryError("HIP out of memory. Tried to allocate 512.00 MiB."),
            "out of memory: 536870912 bytes (512 MiB) were wanted",
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (ValueError("the label says: out of memory"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_errors_of_memory_are_told_from_others(error, text):
    assert memory_text(error) == text


def test_numpy_says_what_it_wanted():
    with pytest.raises(MemoryError) as caught:
        np.ones((2**20, 2**40), dtype=np.float32)
    assert memory_text(caught.value) == f"out of memory: {4 * 2**60} bytes (4,294,967,296 GiB) were wanted"


def test_torch_says_what_it_wanted():
    torch = pytest.importorskip("torch", reason="torch is optional")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46, dtype=torch.uint8)
    assert memory_text(caught.value) == f"out of memory: {2**46} bytes (65,536 GiB) were wanted"
