"""The GPU kernels, emulated thread by thread on a CPU, against the exact results in float64, over awkward shapes.

With CODESIGN_TEST_GPU=1 they run on the GPU that is here instead.
"""

from typing import Any

import numpy as np
import pytest
import torch

from codesign.errors import InputError
from codesign.gpu.attention import GpuKvCache, GpuKvShape
from codesign.gpu.gemm import Workspace, multiply_w8a8, multiply_weight_only, pack_w8a8, pack_weight_only, tiling
from codesign.gpu.launch import Launch
from codesign.gpu.program import program
from codesign.gpu.rounding import held
from tests.gpu.place import DEVICE, DTYPES, GPU, activations, needs_gpu_or_compiler, relative_error, wide

pytestmark = needs_gpu_or_compiler


def grouped(values: np.ndarray[Any, Any], k: int, group: int) -> np.ndarray[Any, Any]:
    return values[:, np.arange(k) // (group or k)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k", "group"),
    [(1, 64, 512, 128), (3, 72, 1536, 64), (8, 17, 96, 32), (9, 130, 576, 64), (40, 64, 1024, 0), (64, 33, 160, 32)],
)
def test_four_bits(m, n, k, group, has_zeros, dtype):
    random = np.random.default_rng(n)
    groups = -(-k // group) if group else 1
    codes = random.integers(0, 16, (n, k), dtype=np.uint8)
    scales = (random.random((n, groups), dtype=np.float32) + 0.1) * 2.0 ** random.integers(-8, 3, (n, 1))
    scales = scales.astype(np.float32)
    zeros = random.integers(0, 16, (n, groups), dtype=np.uint8) if has_zeros else None
    x = activations(m, k, dtype)
    points = grouped(zeros, k, group).astype(float) if zeros is not None else 8.0
    exact = wide(x) @ ((codes - points) * grouped(scales.astype(np.float64), k, group)).T
    workspace = Workspace(DEVICE)
    weights = pack_weight_only("int4", codes, scales, zeros, group, DEVICE)
    for _ in range(2):  # counters are zero again for the second
        found = multiply_weight_only(GPU, x, weights, workspace)
        # Outputs of small scales must not hide behind those of large ones
        sizes = scales.max(axis=1).astype(np.float64)
        assert relative_error(found.double().cpu() / torch.from_numpy(sizes), exact / sizes) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int8", "e4m3"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 512), (5, 33, 96), (12, 96, 1088), (33, 64, 192)])
def test_eight_bits(m, n, k, kind, dtype):
    random = np.random.default_rng(n)
    if kind == "int8":
        codes = random.integers(1, 256, (n, k), dtype=np.uint8)
        values = codes.astype(np.float64) - 128
    else:
        codes = random.integers(0, 256, (n, k), dtype=np.uint8)
        codes[codes & 0x7F == 0x7F] = 0x08
        values = torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
    scales = random.random((n, 1), dtype=np.float32) + np.float32(0.1)
    x = activations(m, k, dtype)
    found = multiply_weight_only(GPU, x, pack_weight_only(kind, codes, scales, None, 0, DEVICE), Workspace(DEVICE))
    assert relative_error(found, wide(x) @ (values * scales).T) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 512), (5, 33, 96), (12, 96, 1088), (64, 64, 192)])
def test_eight_bit_activations_are_exact_but_for_their_rounding(m, n, k, dtype):
    random = np.random.default_rng(n)
    codes = random.integers(-127, 128, (n, k), dtype=np.int8)
    scales = random.random(n, dtype=np.float32) + np.float32(0.1)
    x = activations(m, k, dtype)
    given = wide(x)
    step = np.abs(given).max(axis=1, keepdims=True) / 127
    exact = (np.rint(given / step) * step) @ (codes * scales[:, None].astype(np.float64)).T
    found = multiply_w8a8(GPU, x, pack_w8a8(codes, scales, DEVICE), Workspace(DEVICE))
    assert relative_error(found, exact) < DTYPES[dtype] / 4


def test_rows_that_are_not_finite_or_are_zero_stay_so():
    x = activations(3, 96, torch.float16)
    x[0, 5], x[1] = float("inf"), 0
    weights = pack_w8a8(np.ones((64, 96), np.int8), np.ones(64, np.float32), DEVICE)
    found = multiply_w8a8(GPU, x, weights, Workspace(DEVICE))
    assert found[0].isnan().all()
    assert (found[1] == 0).all()
    assert found[2].isfinite().all()


KV_ERRORS = {"fp16": 2e-3, "bf16": 1.5e-2, "fp8": 1.2e-2, "int8": 1.2e-2, "int4": 1.5e-2}


@pytest.mark.parametrize("kv_format", KV_ERRORS)
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "head_dim", "tokens"),
    [(2, 8, 2, 64, 33), (1, 4, 4, 128, 700), (1, 16, 1, 64, 1)],
)
def test_attention(kv_format, batch, heads, kv_heads, head_dim, tokens):
    dtype = torch.bfloat16 if kv_format == "bf16" else torch.float16
    random = np.random.default_rng(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(DEVICE, dtype)

    k, v = (normal(batch, kv_heads, tokens, head_dim) for _ in range(2))
    q = normal(batch, heads, head_dim)
    cache = GpuKvCache(GPU, GpuKvShape(kv_format, batch, kv_heads, head_dim, tokens), dtype, DEVICE)
    for first, last in ((0, tokens // 2), (tokens // 2, tokens)):
        cache.append(*(part[:, :, first:last].contiguous() for part in (k, v)))
    keys, values = (
        np.repeat(held(part.float().cpu().numpy(), kv_format), heads // kv_heads, axis=1) for part in (k, v)
    )
    scores = np.einsum("bhd,bhtd->bht", wide(q), keys) / head_dim**0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = np.einsum("bht,bhtd->bhd", weights / weights.sum(axis=-1, keepdims=True), values)
    for _ in range(2):
        assert relative_error(cache.attend(q), exact) < KV_ERRORS[kv_format]


@pytest.mark.parametrize("count", [1, 512, 9000])
def test_all_memory_is_read_to_its_end_and_not_beyond(count):
    given, sums = (torch.zeros(size, dtype=torch.int32, device=DEVICE) for size in (4 * count, 2))
    given[4 * (count - 1)] = np.array(0x9E3779B9, np.uint32).view(np.int32).item()  # the sum that is written
    GPU.launch(Launch(program("roofs"), "read_all", (2, 1, 1), 512, 0), (given, sums, np.int64(count)))
    assert sorted(sums.tolist()) == sorted((0, int(given[4 * (count - 1)])))


def test_shapes_that_no_kernel_takes_are_refused():
    with pytest.raises(InputError, match="multiple of 32"):
        pack_weight_only("int4", np.zeros((8, 40), np.uint8), np.ones((8, 1), np.float32), None, 0, DEVICE)
    weights = pack_weight_only("int4", np.zeros((8, 64), np.uint8), np.ones((8, 1), np.float32), None, 0, DEVICE)
    with pytest.raises(InputError, match="1 to 64 rows"):
        multiply_weight_only(GPU, torch.zeros(65, 64, dtype=torch.float16, device=DEVICE), weights, Workspace(DEVICE))
    with pytest.raises(InputError, match="NaN"):
        pack_weight_only("e4m3", np.full((8, 64), 0x7F, np.uint8), np.ones((8, 1), np.float32), None, 0, DEVICE)


@pytest.mark.parametrize("m", [1, 8, 9, 64])
def test_a_cut_covers_all_outputs_and_leaves_work_for_every_warp(m):
    for n, k in ((4096, 4096), (576, 1536), (17, 32), (28672, 8192)):
        cut = tiling(m, n, k, 132)
        assert cut.m_tiles * 8 >= m
        assert cut.parts == 1 or -(-k // 64) // cut.parts >= 8 // cut.n_warps
        assert 128 % cut.outputs == 0
        assert cut.shared_bytes <= 48 * 1024
