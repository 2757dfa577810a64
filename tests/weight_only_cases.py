"""Cases for the kernels with 16-bit activations: made weights, and the bound that their rounding has to keep."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from codesign.native import absence, load

KERNELS = Path(__file__).parents[1] / "kernels"
SHAPES = [
    (1, 1, 32), (2, 15, 64), (3, 64, 96), (5, 100, 576), (7, 33, 160), (17, 15, 576), (65, 100, 96),
    (1, 100, 4096), (4, 64, 4096), (13, 31, 4096), (400, 17, 64),
]  # fmt: skip
GROUPS = [0, 32, 64, 128]

# Activations keep 16 bits of a block's largest value (32,512 steps; half a step of rounding), scales 11 bits.
ACTIVATION_STEP = 1 / 32512
SCALE_ROUNDING = 2.0**-11


def reference_of(kernel: str) -> ModuleType:
    """Return the numpy reference of a kernel folder."""
    path = KERNELS / kernel / "reference.py"
    spec = importlib.util.spec_from_file_location(f"{kernel}_reference", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def isas() -> list[int]:
    """Return the variants that this processor runs."""
    return [] if absence() else [isa for isa in range(6) if load().isa_runs(isa)]


@dataclass(frozen=True)
class Made:
    """Codes, scales and zero points of a made weight matrix."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    group: int


def made(bits: int, shape: tuple[int, int], group: int, *, asymmetric: bool, seed: int = 0) -> Made:
    """Return random weights of every code; scales of a row differ up to 2,000 times."""
    random = np.random.default_rng(seed)
    n, k = shape
    groups = -(-k // group) if group else 1
    scales = (10.0 ** random.uniform(-5, -1.7, (n, groups))).astype(np.float32)
    zeros = random.integers(0, 1 << bits, (n, groups), np.uint8) if asymmetric else None
    return Made(random.integers(0, 1 << bits, shape, np.uint8), scales, zeros, group)


def allowed_error(x: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a bound of |found - exact| [m, n] from the rounding of activations and scales and float32 sums."""
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    magnitudes = np.abs(weights)
    rounding = largest * 0.5 * ACTIVATION_STEP * magnitudes.sum(axis=1)
    return 1e-30 + 1.01 * rounding + (SCALE_ROUNDING + 1e-6) * (np.abs(x).astype(np.float64) @ magnitudes.T)


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves of float32 numbers."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def float32(bits: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class ProgramCase:
    """One call of a test program."""

    isa: int
    threads: int
    x: NDArray[np.float32]
    weights: Made


def program_cases(bits: int, isas: tuple[int, ...]) -> list[ProgramCase]:
    """Return calls of every variant, group and kind of zero point over ragged shapes."""
    cases = []
    for isa in isas:
        for at, (m, n, k) in enumerate([(1, 1, 32), (2, 37, 96), (5, 65, 160), (7, 32, 576), (13, 15, 64)]):
            for group in GROUPS:
                weights = made(bits, (n, k), group, asymmetric=(at + group // 32) % 2 == 1, seed=at)
                x = np.random.default_rng(at).standard_normal((m, k)).astype(np.float32)
                cases.append(ProgramCase(isa, 1 + at % 3, x, weights))
    return cases


def case_bytes(cases: list[ProgramCase]) -> bytes:
    """Return calls in the form that the program <kernel>/cases.cpp reads."""
    parts = []
    for case in cases:
        w, (m, k) = case.weights, case.x.shape
        head = [case.isa, m, len(w.codes), k, w.group, int(w.zeros is not None), case.threads]
        arrays = [case.x, w.codes, w.scales] + ([] if w.zeros is None else [w.zeros])
        parts += [np.array(head, np.int64).tobytes(), *(array.tobytes() for array in arrays)]
    return b"".join(parts)
