"""Weights that a GPU kernel writes out in 16 bits are those of reference.py, bit by bit; products of many rows agree.

Emulated on a CPU; with CODESIGN_TEST_GPU=1 on the GPU that is here.
"""

import numpy as np
import pytest
import torch

from codesign.errors import InputError
from codesign.gpu.gemm import Workspace, pack_weight_only
from codesign.gpu.many_rows import dequantize, multiply_dequantized, multiply_rounded, pack_int8_rows
from tests.gpu.place import DEVICE, DTYPES, GPU, activations, needs_gpu_or_compiler, relative_error, wide
from tests.weight_only_cases import reference_of

pytestmark = needs_gpu_or_compiler

# Outputs that fill no tile, inputs that fill no chunk or group, and more chunks than two blocks take.
SHAPES = [(64, 512, 128), (1, 32, 32), (72, 192, 128), (17, 96, 32), (130, 576, 64), (33, 160, 0), (20, 2112, 64)]
GUARD = 64


def exact_scales(n: int, groups: int, seed: int) -> np.ndarray:
    """Return scales that their packed form holds without rounding."""
    random = np.random.default_rng(seed)
    mantissas = 1 + random.integers(0, 1024, (n, groups)) / 1024
    scales = mantissas * 2.0 ** random.integers(-6, 1, (n, groups)) * 2.0 ** random.integers(-8, 1, (n, 1))
    return scales.astype(np.float32)


def made(bits: int, n: int, k: int, group: int, has_zeros: bool):
    random = np.random.default_rng(n + k)
    groups = -(-k // group) if group else 1
    zeros = random.integers(0, 1 << bits, (n, groups), dtype=np.uint8) if has_zeros else None
    return random.integers(0, 1 << bits, (n, k), dtype=np.uint8), exact_scales(n, groups, k), zeros


def written(weights, dtype: torch.dtype) -> torch.Tensor:
    """Return what the kernel writes; nothing beside it may change."""
    size = weights.n * weights.k
    memory = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype, device=DEVICE)
    found = dequantize(GPU, weights, memory[GUARD:-GUARD].view(weights.n, weights.k))
    assert memory[:GUARD].isnan().all()
    assert memory[-GUARD:].isnan().all()
    return found.cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
def test_four_bit_weights_are_written_as_the_reference_has_them(n, k, group, has_zeros, dtype):
    codes, scales, zeros = made(4, n, k, group, has_zeros)
    exact = reference_of("w4a16_gemm").dequantize(codes, scales, zeros, group)
    found = written(pack_weight_only("int4", codes, scales, zeros, group, DEVICE), dtype)
    assert torch.equal(found, torch.from_numpy(exact).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
def test_eight_bit_weights_are_written_as_the_reference_has_them(n, k, group, dtype):
    codes, scales, _ = made(8, n, k, group, False)
    exact = reference_of("w8a16_gemm").dequantize(codes, scales, None, group)
    found = written(pack_weight_only("int8", codes, scales, None, group, DEVICE), dtype)
    assert torch.equal(found, torch.from_numpy(exact).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(64, 512), (17, 96), (20, 1120)])
def test_e4m3_weights_are_written_as_pytorch_reads_them(n, k, dtype):
    codes, scales, _ = made(8, n, k, 0, False)
    codes[codes & 0x7F == 0x7F] = 0x08
    exact = torch.from_numpy(codes).view(torch.float8_e4m3fn).double() * torch.from_numpy(scales).double()
    found = written(pack_weight_only("e4m3", codes, scales, None, 0, DEVICE), dtype)
    assert torch.equal(found, exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_share_the_memory_that_their_weights_are_written_to(dtype):
    workspace = Workspace(DEVICE)
    for m, n, k in ((65, 72, 192), (100, 17, 96), (17, 72, 192)):
        codes, scales, zeros = made(4, n, k, 64, True)
        x = activations(m, k, dtype)
        exact = reference_of("w4a16_gemm").multiply(wide(x), codes, scales, zeros, 64)
        weights = pack_weight_only("int4", codes, scales, zeros, 64, DEVICE)
        found = multiply_dequantized(GPU, x, weights, workspace)
        assert found.dtype == dtype
        assert relative_error(found, exact) < DTYPES[dtype]
    memory = {workspace.matrix(n, k, dtype).data_ptr() for n, k in ((72, 192), (17, 96))}
    assert len(memory) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(17, 8, 32), (65, 72, 96), (20, 2056, 64), (100, 64, 576)])
def test_many_rounded_rows_are_exact_but_for_their_rounding(m, n, k, dtype):
    random = np.random.default_rng(n)
    codes = random.integers(-127, 128, (n, k), dtype=np.int8)
    scales = random.random(n, dtype=np.float32) + np.float32(0.1)
    x = activations(m, k, dtype)
    step = np.abs(wide(x)).max(axis=1, keepdims=True) / 127
    exact = (np.rint(wide(x) / step) * step) @ (codes * scales[:, None].astype(np.float64)).T
    found = multiply_rounded(GPU, x, pack_int8_rows(codes, scales, DEVICE))
    assert found.dtype == dtype
    assert relative_error(found, exact) < DTYPES[dtype] / 4


def test_many_rows_that_are_not_finite_or_are_zero_stay_so():
    x = activations(17, 96, torch.float16)
    x[0, 5], x[1] = float("inf"), 0
    found = multiply_rounded(GPU, x, pack_int8_rows(np.ones((64, 96), np.int8), np.ones(64, np.float32), DEVICE))
    assert found[0].isnan().all()
    assert (found[1] == 0).all()
    assert found[2:].isfinite().all()


def test_what_the_library_s_product_of_integers_does_not_take_is_refused():
    with pytest.raises(InputError, match="multiples of 8"):
        pack_int8_rows(np.ones((12, 64), np.int8), np.ones(12, np.float32), DEVICE)
    weights = pack_int8_rows(np.ones((16, 64), np.int8), np.ones(16, np.float32), DEVICE)
    with pytest.raises(InputError, match=r"16 rows.*17 or more"):
        multiply_rounded(GPU, activations(16, 64, torch.float16), weights)
    with pytest.raises(InputError, match=r"rows of 64 are wanted"):
        multiply_rounded(GPU, activations(17, 96, torch.float16), weights)
