"""The Triton kernel against reference.py: by Triton's interpreter, or with CODESIGN_TEST_GPU=1 on the GPU that is here.

Skipped where Triton is not installed; its wheel (272 MiB) is no part of the extras.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from codesign.errors import CapabilityError, InputError
from codesign.gpu import triton_gemm
from codesign.gpu.gemm import pack_weight_only
from codesign.gpu.triton_gemm import blocks, multiply_by_triton
from tests.gpu.triton_program import CASES
from tests.weight_only_cases import reference_of

ROOT = Path(__file__).parents[2]
ON_GPU = bool(os.environ.get("CODESIGN_TEST_GPU"))
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton: pip install triton")
ERROR_MAX = 1e-3  # scales, weights and outputs are rounded to 11 bits each


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    file = tmp_path_factory.mktemp("triton") / "products.npz"
    environment = os.environ | ({} if ON_GPU else {"TRITON_INTERPRET": "1"}) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.gpu.triton_program", str(file), "cuda" if ON_GPU else "cpu"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(file) as found:
        return dict(found)


@needs_triton
@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: str(CASES[index]))
def test_products_are_those_of_the_reference(index, products):
    case, found = CASES[index], products[str(index)].astype(np.float64)
    of = case.weights
    exact = reference_of("w4a16_gemm").multiply(case.x, of.codes, of.scales, of.zeros, of.group)
    assert found.shape == exact.shape
    # Outputs of small scales must not hide behind those of large ones
    errors = np.linalg.norm(found - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert errors.max() < ERROR_MAX


def test_the_cases_use_every_block_that_there_is():
    used = {blocks(case.m, case.n, case.multiprocessors) for case in CASES}
    assert {one.rows for one in used} == {16, 32, 64, 128}
    assert {one.tiles for one in used} == {2, 4}


@pytest.mark.parametrize(("m", "rows"), [(16, 16), (17, 32), (64, 64), (65, 128), (256, 128)])
def test_blocks_hold_all_rows_up_to_128_and_are_narrow_where_wide_ones_leave_a_gpu_idle(m, rows):
    assert blocks(m, 4096, 1000).rows == blocks(m, 4096, 1).rows == rows
    assert (blocks(m, 4096, 1000).tiles, blocks(m, 28672, 132).tiles) == (2, 4)


def packed(kind):
    return pack_weight_only(kind, np.ones((64, 64), np.uint8), np.ones((64, 1), np.float32), None, 0, "cpu")


def test_what_the_kernel_is_not_for_is_refused():
    with pytest.raises(InputError, match=r"1 to 256 rows"):
        multiply_by_triton(torch.zeros(257, 64, dtype=torch.float16), packed("int4"), 1)
    with pytest.raises(InputError, match=r"bfloat16: the Triton kernel is for int4 weights and float16"):
        multiply_by_triton(torch.zeros(16, 64, dtype=torch.bfloat16), packed("int4"), 1)
    with pytest.raises(InputError, match="int8 weights"):
        multiply_by_triton(torch.zeros(16, 64, dtype=torch.float16), packed("int8"), 1)


@pytest.mark.skipif(HAS_TRITON, reason="Triton is installed")
def test_without_triton_the_product_says_what_to_install():
    triton_gemm._kernel.cache_clear()
    with pytest.raises(CapabilityError, match="pip install triton"):
        multiply_by_triton(torch.zeros(16, 64, dtype=torch.float16), packed("int4"), 1)
