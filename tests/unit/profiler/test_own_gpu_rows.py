"""The kernels of our GPU library: which of them are for how many rows; those with a library's product are right."""

import shutil

import numpy as np
import pytest

from codesign.gpu import triton_gemm
from codesign.gpu.gemm import Workspace
from codesign.profiler.check import check_output
from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import gpu, own_gpu
from codesign.profiler.libraries.adapter import prepare_gemm
from tests.gpu.emulated_gpu import COMPILER, EmulatedGpu

WITH_A_LIBRARY = {"dequantize_mm", "round_int_mm"}
EMULATED = {"W4A16-g128", "W4A16-g32-asym", "W8A16", "W8A8"}
ROWS = [row for row in own_gpu.LIBRARY.gemms if row.name in WITH_A_LIBRARY and row.scheme in EMULATED]


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.scheme}")
def test_a_row_with_a_library_s_product_computes_its_scheme(row, monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    state = EmulatedGpu(), Workspace("cpu")
    monkeypatch.setattr(own_gpu, "_state", lambda: state)
    case = GemmCase(row.scheme, 65, 72, 192)
    assert [limit(case) for limit in row.limits] == [None] * len(row.limits)
    prepared = prepare_gemm(row, case, 2)
    check = check_output(prepared, case)
    assert check.passed, check.reason
    first, second = (prepared.output(prepared.run(copy)) for copy in range(2))
    np.testing.assert_array_equal(second, first)


def names(m: int, scheme: str, monkeypatch) -> set[str]:
    monkeypatch.setattr(gpu, "capability", lambda: (9, 0))
    monkeypatch.setattr(triton_gemm, "problem", lambda: None)
    case = GemmCase(scheme, m, 4096, 4096)
    rows = [row for row in own_gpu.LIBRARY.gemms if row.scheme == scheme]
    return {row.name for row in rows if all(limit(case) is None for limit in row.limits)}


@pytest.mark.parametrize(
    ("m", "scheme", "expected"),
    [
        (1, "W4A16-g128", {"w4a16_gemm"}),
        (16, "W4A16", {"w4a16_gemm", "triton"}),
        (17, "W4A16-g64-asym", {"w4a16_gemm", "triton", "dequantize_mm"}),
        (65, "W4A16-g128", {"triton", "dequantize_mm"}),
        (257, "W4A16-g32", {"dequantize_mm"}),
        (16, "W8A16", {"w8a16_gemm"}),
        (64, "W8A16", {"w8a16_gemm", "dequantize_mm"}),
        (65, "W8A16", {"dequantize_mm"}),
        (16, "W8A8", {"w8a8_gemm"}),
        (64, "W8A8", {"w8a8_gemm", "round_int_mm"}),
        (65, "W8A8", {"round_int_mm"}),
    ],
)
def test_around_the_crossover_several_kernels_are_measured(m, scheme, expected, monkeypatch):
    assert names(m, scheme, monkeypatch) == expected


def test_without_triton_its_rows_say_so(monkeypatch):
    monkeypatch.setattr(triton_gemm.importlib.util, "find_spec", lambda name: None)
    (row,) = [row for row in own_gpu.LIBRARY.gemms if (row.name, row.scheme) == ("triton", "W4A16-g128")]
    reasons = [limit(GemmCase(row.scheme, 32, 4096, 4096)) for limit in row.limits[:2]]
    assert reasons == [None, "triton is not installed; pip install triton"]
