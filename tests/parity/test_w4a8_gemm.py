"""The W4A8 kernel against numpy: every variant that runs here, every shape class, group size and thread count."""

from pathlib import Path

import numpy as np
import pytest
from native_programs import EMULATED, SANITIZED, Target, build, reason_to_skip, run
from numpy.typing import NDArray
from weight_only_cases import isas, reference_of

from codesign.errors import CapabilityError, InputError
from codesign.native import absence, load
from codesign.native.call import Call

pytestmark = pytest.mark.skipif(absence() is not None, reason=str(absence()))

SHAPES = [
    (1, 1, 32), (2, 15, 64), (3, 64, 96), (5, 100, 576), (7, 33, 160), (12, 64, 256), (13, 32, 96), (17, 15, 576),
    (65, 100, 96), (1, 100, 4096), (4, 64, 4096), (25, 31, 4096),
]  # fmt: skip
GROUPS = (0, 32, 64, 128)
GUARD = 32


reference = reference_of("w4a8_gemm")


def _weights(
    n: int, k: int, group: int, asymmetric: bool, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    random = np.random.default_rng(seed)
    groups = -(-k // group) if group else 1
    scales = (0.01 * np.exp(random.standard_normal((n, groups)))).astype(np.float32)
    zeros = random.integers(0, 16, (n, groups), np.uint8) if asymmetric else None
    return random.integers(0, 16, (n, k), np.uint8), scales, zeros


def _close(
    found: NDArray[np.generic], wanted: NDArray[np.float64], x: NDArray[np.float32], w: NDArray[np.float64]
) -> None:
    """float32 sums of up to k / 32 groups: within 1e-6 of the sum of magnitudes."""
    allowed = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(w).T) + 1e-30
    assert np.all(np.abs(found.astype(np.float64) - wanted) <= allowed)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("isa", isas())
def test_equals_the_reference(isa: int, group: int, asymmetric: bool) -> None:
    from codesign.native import gemm_int8

    for m, n, k in SHAPES:
        codes, scales, zeros = _weights(n, k, group, asymmetric, seed=m)
        x = np.random.default_rng(n).standard_normal((m, k)).astype(np.float32)
        wanted = reference.multiply(x, codes, scales, zeros, group)
        w = reference.dequantize(codes, scales, zeros, group)
        packed = gemm_int8.pack_w4a8(codes, scales, zeros, group)
        for threads in (1, 2, 3):
            _close(gemm_int8.run_w4a8(x, packed, Call(isa, threads)), wanted, x, w)


@pytest.mark.parametrize("isa", isas())
def test_bfloat16_in_and_out(isa: int) -> None:
    from codesign.native import gemm_int8

    codes, scales, zeros = _weights(45, 256, 64, asymmetric=True)
    x = np.random.default_rng(1).standard_normal((6, 256)).astype(np.float32)
    x_bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    x = (x_bits.astype(np.uint32) << 16).view(np.float32)
    found = gemm_int8.run_w4a8(x_bits, gemm_int8.pack_w4a8(codes, scales, zeros, 64), Call(isa, bfloat16=True))
    wanted = reference.multiply(x, codes, scales, zeros, 64)
    values = (found.astype(np.uint32) << 16).view(np.float32)
    assert np.abs(values - wanted).max() <= np.abs(wanted).max() * 2.0**-8


@pytest.mark.parametrize("isa", isas())
def test_extreme_codes_and_activations_do_not_overflow(isa: int) -> None:
    from codesign.native import gemm_int8

    for group in GROUPS:
        codes = np.full((33, 4096), 15, np.uint8)
        scales, zeros = _weights(33, 4096, group, asymmetric=True)[1], None
        for sign in (1, -1):
            x = np.full((3, 4096), sign * 2.5, np.float32)
            found = gemm_int8.run_w4a8(x, gemm_int8.pack_w4a8(codes, scales, zeros, group), Call(isa))
            wanted = reference.multiply(x, codes, scales, zeros, group)
            assert np.allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("isa", isas())
def test_rows_that_are_zero_tiny_or_not_finite(isa: int) -> None:
    from codesign.native import gemm_int8

    codes, scales, zeros = _weights(20, 128, 32, asymmetric=True)
    x = np.ones((5, 128), np.float32)
    x[1], x[2], x[3, 100], x[4, 7] = 0, 1e-40, np.nan, -np.inf
    found = gemm_int8.run_w4a8(x, gemm_int8.pack_w4a8(codes, scales, zeros, 32), Call(isa))
    assert np.isfinite(found[0]).all()
    assert found[0].any()
    assert not found[1:3].any()
    assert np.isnan(found[3:]).all()


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_writes_nothing_beyond_its_arrays(isa: int, n: int) -> None:
    native = load()
    m, k, group = 14, 96, 64
    codes, scales, _ = _weights(n, k, group, asymmetric=False)
    packed_bytes = native.w4a8_gemm_packed_bytes(n, k, group, False)
    scratch_bytes = native.w4a8_gemm_workspace_bytes(m, k, group)
    packed, scratch = np.full(packed_bytes + GUARD, 7, np.uint8), np.full(scratch_bytes + GUARD, 7, np.uint8)
    out = np.full(m * n + 2 * GUARD, 7, np.float32)
    x = np.random.default_rng(0).standard_normal((m, k)).astype(np.float32)
    assert not native.w4a8_gemm_pack(codes.ctypes.data, scales.ctypes.data, 0, n, k, group, packed.ctypes.data)
    begin = out.ctypes.data + 4 * GUARD
    error = native.w4a8_gemm_run(
        isa, x.ctypes.data, 0, packed.ctypes.data, begin, 0, m, n, k, group, 0, 2, scratch.ctypes.data
    )
    assert not error
    for array, length in ((packed, GUARD), (scratch, GUARD), (out, GUARD)):
        assert (array[-length:] == 7).all()
    assert (out[:GUARD] == 7).all()
    wanted = reference.multiply(x, codes, scales, None, group)
    assert np.allclose(out[GUARD:-GUARD].reshape(m, n), wanted, atol=1e-5 * np.abs(wanted).max())


def test_stored_scales_are_exact_for_half_precision_ones() -> None:
    random = np.random.default_rng(0)
    scales = random.uniform(1e-3, 1, (40, 32)).astype(np.float16).astype(np.float32)
    assert (reference.stored_scales(scales) == scales).all()


def test_wrong_arguments_are_errors_with_a_fix() -> None:
    from codesign.native import gemm_int8

    codes, scales, _ = _weights(16, 64, 32, asymmetric=False)
    packed = gemm_int8.pack_w4a8(codes, scales, None, 32)
    x = np.ones((2, 64), np.float32)
    with pytest.raises(InputError, match="multiple of 32"):
        gemm_int8.pack_w4a8(codes[:, :63], scales, None, 32)
    with pytest.raises(InputError, match="group"):
        gemm_int8.pack_w4a8(codes, scales, None, 48)
    with pytest.raises(InputError, match=r"\(16, 2\) is needed"):
        gemm_int8.pack_w4a8(codes, scales[:, :1], None, 32)
    with pytest.raises(InputError, match=r"\(2, 64\) is needed"):
        gemm_int8.run_w4a8(x[:, :32], packed)
    with pytest.raises(InputError, match="float32"):
        gemm_int8.run_w4a8(x.astype(np.float64), packed)
    with pytest.raises(InputError, match="at least 1"):
        gemm_int8.run_w4a8(x[:0], packed)
    with pytest.raises(CapabilityError, match="variant"):
        gemm_int8.run_w4a8(x, packed, Call(isa=17))
    packed.pages.close()
    with pytest.raises(ValueError, match="closed"):
        gemm_int8.run_w4a8(x, packed)


CASE_SHAPES = [(1, 1, 32, 1), (3, 33, 96, 2), (4, 64, 160, 1), (7, 20, 64, 1), (13, 40, 256, 3), (24, 15, 96, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("target", [SANITIZED, EMULATED], ids=lambda target: target.name)
def test_in_a_program_of_its_own(target: Target, tmp_path: Path) -> None:
    """Sanitized: nothing is read or written outside of the arrays; emulated: the variants of another processor."""
    if reason := reason_to_skip(target):
        pytest.skip(reason)
    program = build("w4a8_gemm", target, tmp_path)
    cases, wanted = b"", []
    for isa in target.isas:
        if target is SANITIZED and isa not in isas():
            continue
        for index, (m, n, k, threads) in enumerate(CASE_SHAPES):
            group, asymmetric = GROUPS[(index + isa) % len(GROUPS)], index % 2 == 1
            codes, scales, zeros = _weights(n, k, group, asymmetric, seed=index)
            x = np.random.default_rng(index).standard_normal((m, k)).astype(np.float32)
            head = np.array([isa, m, n, k, group, asymmetric, threads], np.int64)
            cases += head.tobytes() + x.tobytes() + codes.tobytes() + scales.tobytes()
            cases += b"" if zeros is None else zeros.tobytes()
            w = reference.dequantize(codes, scales, zeros, group)
            wanted.append((reference.multiply(x, codes, scales, zeros, group), x, w))
    found = np.frombuffer(run(program, target, cases), np.float32)
    assert len(found) == sum(one.size for one, _, _ in wanted)
    for one, x, w in wanted:
        _close(found[: one.size].reshape(one.shape), one, x, w)
        found = found[one.size :]
