"""A kernel that says it runs on a GPU, as a module of adapters; the GPU is what the module pynvml says it is."""

import os
import time
from pathlib import Path
from typing import Any

from codesign.profiler.kernel import GemmCase, Kernel, LibraryState, Prepared
from tests.fake_kernels import check_output, gemm, refuses

MODULE = "tests.gpu_kernels"
__all__ = ["all_kernels", "check_output", "library_states"]


MEETING_S = 30.0


def prepared_beside(name: str) -> Any:
    """Return a preparation that ends only when that of the other of two kernels has begun."""

    def prepare(case: GemmCase, copies: int) -> Prepared:
        place = Path(os.environ["CODESIGN_TEST_MEETING"])
        (place / name).touch()
        end_s = time.monotonic() + MEETING_S
        while len(list(place.iterdir())) < 2:
            if time.monotonic() > end_s:
                raise RuntimeError("the other one was not there")
            time.sleep(0.01)
        time.sleep(0.2)
        (place / f"{name} is done").touch()
        return gemm(2e-4)(case, copies)

    return prepare


def prepared_alone(case: GemmCase, copies: int) -> Prepared:
    place = Path(os.environ["CODESIGN_TEST_MEETING"])
    if len(list(place.glob("* is done"))) < 2:
        raise RuntimeError("the others are at work")
    return gemm(2e-4)(case, copies)


def all_kernels() -> tuple[Kernel, ...]:
    return (
        Kernel("fakegpu", "mm", "BF16", refuses, gemm(2e-4), device="cuda"),
        *(Kernel("meeting", one, "BF16", refuses, prepared_beside(one), device="cuda") for one in ("first", "second")),
        Kernel("meeting", "tuned", "BF16", refuses, prepared_alone, device="cuda", tunes=True),
    )


def library_states() -> tuple[LibraryState, ...]:
    return (LibraryState("fakegpu", "1.0", None, "cuda"), LibraryState("meeting", "1.0", None, "cuda"))
