"""torch.ops.codesign.linear: the kernels behind torch give what they give to numpy, and torch can trace them."""

import numpy as np
import pytest
from weight_only_cases import made

from codesign.errors import InputError
from codesign.native import absence
from codesign.native.call import Call

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.skipif(absence() is not None, reason=str(absence()))

N, K, GROUP = 45, 128, 32


def _packed(kernel: str):
    from codesign.native.gemm_bf16 import pack_weight_only
    from codesign.native.gemm_int8 import pack_w4a8, pack_w8a8

    w = made(8 if kernel.startswith("W8") else 4, (N, K), GROUP, asymmetric=True)
    return {
        "W4A16": lambda: pack_weight_only(4, w.codes, w.scales, w.zeros, GROUP),
        "W8A16": lambda: pack_weight_only(8, w.codes, w.scales, w.zeros, GROUP),
        "W4A8": lambda: pack_w4a8(w.codes, w.scales, w.zeros, GROUP),
        "W8A8": lambda: pack_w8a8(w.codes.view(np.int8), w.scales[:, 0]),
    }[kernel]()


def _run_numpy(x: np.ndarray, weights, bfloat16: bool) -> np.ndarray:
    from codesign.native import gemm_bf16, gemm_int8

    run = {
        gemm_bf16.WeightOnly: gemm_bf16.run_weight_only,
        gemm_int8.W4A8Weights: gemm_int8.run_w4a8,
        gemm_int8.W8A8Weights: gemm_int8.run_w8a8,
    }[type(weights)]
    return run(x, weights, Call(bfloat16=bfloat16))


@pytest.mark.parametrize("kernel", ["W4A16", "W8A16", "W4A8", "W8A8"])
def test_equals_the_numpy_front(kernel: str) -> None:
    from codesign.native.torch_ops import tensor_of

    weights = _packed(kernel)
    packed = tensor_of(weights)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, K)).astype(np.float32))
    wanted = _run_numpy(x.numpy().reshape(6, K), weights, False).reshape(2, 3, N)
    assert np.array_equal(packed.linear(x, threads=2).numpy(), wanted)
    halves = x.bfloat16()
    bits = halves.view(torch.uint16).numpy().reshape(6, K)
    wanted_bits = _run_numpy(bits, weights, True).reshape(2, 3, N)
    assert np.array_equal(packed.linear(halves).view(torch.uint16).numpy(), wanted_bits)


@pytest.mark.parametrize("kernel", ["W4A16", "W8A8"])
def test_the_fake_version_has_the_shape_and_dtype_of_the_real_one(kernel: str) -> None:
    from codesign.native.torch_ops import tensor_of

    p = tensor_of(_packed(kernel))
    arguments = (torch.ones(2, 5, K), p.packed, p.kernel, [p.n, p.group, int(p.asymmetric)], 1)
    checks = ("test_schema", "test_faketensor")
    results = torch.library.opcheck(torch.ops.codesign.linear, arguments, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


def test_columns_of_a_larger_tensor_and_no_rows() -> None:
    from codesign.native.torch_ops import tensor_of

    packed = tensor_of(_packed("W4A16"))
    wide = torch.randn(4, 2 * K, generator=torch.Generator().manual_seed(0))
    assert torch.equal(packed.linear(wide[:, K:]), packed.linear(wide[:, K:].contiguous()))
    assert packed.linear(torch.ones(0, K)).shape == (0, N)


def test_the_tensor_keeps_the_pages() -> None:
    from codesign.native.torch_ops import tensor_of

    x, weights = torch.ones(1, K), _packed("W4A16")
    packed = tensor_of(weights)
    wanted = packed.linear(x)
    del weights
    _packed("W8A16")  # would take the freed pages
    assert torch.equal(packed.linear(x), wanted)


def test_wrong_arguments_are_errors_with_a_fix() -> None:
    from codesign.native.torch_ops import tensor_of

    packed = tensor_of(_packed("W4A16"))
    with pytest.raises(InputError, match="float32 or bfloat16"):
        packed.linear(torch.ones(2, K, dtype=torch.float64))
    with pytest.raises(InputError, match="bytes when packed"):
        packed.linear(torch.ones(2, 2 * K))
    with pytest.raises(InputError, match="use W4A16"):
        torch.ops.codesign.linear(torch.ones(1, K), packed.packed, "W2A16", [N, 0, 0], 1)
