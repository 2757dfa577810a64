"""Kernels with known times and known faults, as a module of adapters that child processes can load.

`fake` behaves, `broken` does not; `away` is not installed. A kernel is as fast as its name says.
"""

import os
import signal
import time
from typing import Any

import numpy as np

from codesign.profiler.check import Check
from codesign.profiler.kernel import AttentionCase, Case, GemmCase, Kernel, LibraryState, Prepared, gemm_inputs

MODULE = "tests.fake_kernels"


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def refuses(case: Case) -> str | None:
    if isinstance(case, GemmCase) and case.n % 2:
        return "n must be even"
    return None


def gemm(call_s: float, wrong: float = 0.0) -> Any:
    def prepare(case: GemmCase, copies: int) -> Prepared:
        given = gemm_inputs(case)
        exact = given.x.astype(np.float64) @ given.w.astype(np.float64).T
        result = exact.astype(np.float32)
        result[0, 0] += wrong

        def run(_copy: int) -> Any:
            spin(call_s)
            return result

        return Prepared(run, copies, lambda out: out, lambda: exact, 2.0 * case.n * case.k, "bf16")

    return prepare


def attention(case: AttentionCase, copies: int) -> Prepared:
    exact = np.ones((case.batch, case.heads, case.q_tokens, case.head_dim))
    out = exact.astype(np.float32)

    def run(_copy: int) -> Any:
        spin(2e-4)
        return out

    read_bytes = 4.0 * case.batch * case.kv_tokens * case.kv_heads * case.head_dim
    return Prepared(run, copies, lambda result: result, lambda: exact, read_bytes, "fp32")


def die(signal_number: int) -> Any:
    def prepare(case: GemmCase, copies: int) -> Prepared:
        os.kill(os.getpid(), signal_number)
        return gemm(1e-4)(case, copies)

    return prepare


def leave(case: GemmCase, copies: int) -> Prepared:
    print("the library gives up", flush=True)
    os._exit(1)


def hang(case: GemmCase, copies: int) -> Prepared:
    time.sleep(3600)
    return gemm(1e-4)(case, copies)


def throw(case: GemmCase, copies: int) -> Prepared:
    raise RuntimeError("no such instruction")


def exhaust(case: GemmCase, copies: int) -> Prepared:
    raise MemoryError


def kernel(library: str, name: str, scheme: str, prepare: Any) -> Kernel:
    return Kernel(library, name, scheme, refuses, prepare)


def all_kernels() -> tuple[Kernel, ...]:
    return (
        kernel("fake", "plain", "BF16", gemm(4e-4)),
        kernel("fake", "slower", "BF16", gemm(8e-4)),
        kernel("fake", "packed", "W4A16-g128", gemm(2e-4)),
        kernel("fake", "decode", "fp16", attention),
        kernel("broken", "wrong", "BF16", gemm(1e-5, wrong=1.0)),
        kernel("broken", "segfault", "BF16", die(signal.SIGSEGV)),
        kernel("broken", "abort", "W4A16-g128", die(signal.SIGABRT)),
        kernel("broken", "exit", "W8A16", leave),
        kernel("broken", "hang", "W8A8", hang),
        kernel("broken", "throw", "W4A8", throw),
        kernel("broken", "oom", "FP8", exhaust),
    )


def library_states() -> tuple[LibraryState, ...]:
    return (
        LibraryState("fake", "1.2.3", None),
        LibraryState("broken", "0.1", None),
        LibraryState("away", None, "not installed; pip install away"),
    )


def check_output(prepared: Prepared, case: Case) -> Check:
    """Compare with the reference itself, so that these kernels need no PyTorch."""
    error = float(np.abs(prepared.output(prepared.run(0)) - prepared.reference()).max())
    return Check(error, 1e-3, error <= 1e-3, "" if error <= 1e-3 else f"an output is off by {error:.2g}")
