"""The W8A8 kernel against numpy: every variant that runs here, every shape class, thread count and kind of scale."""

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
    (1, 1, 32), (2, 15, 64), (3, 64, 96), (5, 100, 576), (7, 33, 160), (14, 64, 256), (15, 32, 96), (17, 15, 576),
    (65, 100, 96), (1, 100, 4096), (4, 64, 4096), (29, 31, 4096),
]  # fmt: skip
GUARD = 32


reference = reference_of("w8a8_gemm")


def _weights(n: int, k: int, seed: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return random.integers(-128, 128, (n, k), np.int8), random.uniform(1e-3, 1e-2, n).astype(np.float32)


def _close(found: NDArray[np.generic], wanted: NDArray[np.float64]) -> None:
    """The sums are whole numbers, exact; only scaling rounds."""
    assert np.all(np.abs(found.astype(np.float64) - wanted) <= 1e-6 * np.abs(wanted))


@pytest.mark.parametrize("static_scale", [None, 0.02])
@pytest.mark.parametrize("isa", isas())
def test_equals_the_reference(isa: int, static_scale: float | None) -> None:
    from codesign.native import gemm_int8

    for m, n, k in SHAPES:
        codes, scales = _weights(n, k, seed=m)
        x = np.random.default_rng(n).standard_normal((m, k)).astype(np.float32)
        wanted = reference.multiply(x, codes, scales, static_scale)
        packed = gemm_int8.pack_w8a8(codes, scales)
        for threads in (1, 2, 3):
            _close(gemm_int8.run_w8a8(x, packed, Call(isa, threads), static_scale), wanted)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("code", [-128, 127])
def test_extreme_codes_and_activations_do_not_overflow(isa: int, code: int) -> None:
    from codesign.native import gemm_int8

    codes, scales = np.full((33, 131072), code, np.int8), _weights(33, 32)[1]
    packed = gemm_int8.pack_w8a8(codes, scales)
    for sign in (1, -1):
        x = np.full((3, 131072), sign * 2.5, np.float32)
        found = gemm_int8.run_w8a8(x, packed, Call(isa))
        _close(found, reference.multiply(x, codes, scales))


@pytest.mark.parametrize("isa", isas())
def test_bfloat16_in_and_out(isa: int) -> None:
    from codesign.native import gemm_int8

    codes, scales = _weights(45, 256)
    x = np.random.default_rng(1).standard_normal((6, 256)).astype(np.float32)
    x_bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    x = (x_bits.astype(np.uint32) << 16).view(np.float32)
    found = gemm_int8.run_w8a8(x_bits, gemm_int8.pack_w8a8(codes, scales), Call(isa, bfloat16=True))
    wanted = reference.multiply(x, codes, scales)
    values = (found.astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.abs(values - wanted) <= np.abs(wanted) * 2.0**-8)


@pytest.mark.parametrize("static_scale", [None, 0.02])
@pytest.mark.parametrize("isa", isas())
def test_rows_that_are_zero_tiny_or_not_finite(isa: int, static_scale: float | None) -> None:
    from codesign.native import gemm_int8

    codes, scales = _weights(20, 128)
    x = np.ones((5, 128), np.float32)
    x[1], x[2], x[3, 100], x[4, 7] = 0, 1e-40, np.nan, -np.inf
    found = gemm_int8.run_w8a8(x, gemm_int8.pack_w8a8(codes, scales), Call(isa), static_scale)
    assert np.isfinite(found[0]).all()
    assert found[0].any()
    assert not found[1:3].any()
    assert np.isnan(found[3:]).all()


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_writes_nothing_beyond_its_arrays(isa: int, n: int) -> None:
    native = load()
    m, k = 16, 96
    codes, scales = _weights(n, k)
    packed_bytes, scratch_bytes = native.w8a8_gemm_packed_bytes(n, k), native.w8a8_gemm_workspace_bytes(m, k)
    packed, scratch = np.full(packed_bytes + GUARD, 7, np.uint8), np.full(scratch_bytes + GUARD, 7, np.uint8)
    out = np.full(m * n + 2 * GUARD, 7, np.float32)
    x = np.random.default_rng(0).standard_normal((m, k)).astype(np.float32)
    assert not native.w8a8_gemm_pack(codes.ctypes.data, scales.ctypes.data, n, k, packed.ctypes.data)
    begin = out.ctypes.data + 4 * GUARD
    error = native.w8a8_gemm_run(
        isa, x.ctypes.data, 0, packed.ctypes.data, begin, 0, m, n, k, 0.0, 2, scratch.ctypes.data
    )
    assert not error
    for array in (packed, scratch, out):
        assert (array[-GUARD:] == 7).all()
    assert (out[:GUARD] == 7).all()
    _close(out[GUARD:-GUARD].reshape(m, n), reference.multiply(x, codes, scales))


def test_wrong_arguments_are_errors_with_a_fix() -> None:
    from codesign.native import gemm_int8

    codes, scales = _weights(16, 64)
    packed = gemm_int8.pack_w8a8(codes, scales)
    x = np.ones((2, 64), np.float32)
    with pytest.raises(InputError, match="multiple of 32"):
        gemm_int8.pack_w8a8(codes[:, :63], scales)
    with pytest.raises(InputError, match=r"\(16,\) is needed"):
        gemm_int8.pack_w8a8(codes, scales[:3])
    with pytest.raises(InputError, match="static"):
        gemm_int8.run_w8a8(x, packed, static_scale=-1.0)
    with pytest.raises(CapabilityError, match="variant"):
        gemm_int8.run_w8a8(x, packed, Call(isa=17))


CASE_SHAPES = [(1, 1, 32, 1), (3, 33, 96, 2), (4, 64, 160, 1), (7, 20, 64, 1), (13, 40, 256, 3), (24, 15, 96, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("target", [SANITIZED, EMULATED], ids=lambda target: target.name)
def test_in_a_program_of_its_own(target: Target, tmp_path: Path) -> None:
    """Sanitized: nothing is read or written outside of the arrays; emulated: the variants of another processor."""
    if reason := reason_to_skip(target):
        pytest.skip(reason)
    program = build("w8a8_gemm", target, tmp_path)
    cases, wanted = b"", []
    for isa in target.isas:
        if target is SANITIZED and isa not in isas():
            continue
        for index, (m, n, k, threads) in enumerate(CASE_SHAPES):
            codes, scales = _weights(n, k, seed=index)
            x = np.random.default_rng(index).standard_normal((m, k)).astype(np.float32)
            static_scale = 0.02 if index % 2 else None
            head, scale = np.array([isa, m, n, k, threads], np.int64), np.float32(static_scale or 0)
            cases += b"".join(array.tobytes() for array in (head, scale, x, codes, scales))
            wanted.append(reference.multiply(x, codes, scales, static_scale))
    found = np.frombuffer(run(program, target, cases), np.float32)
    assert len(found) == sum(one.size for one in wanted)
    for one in wanted:
        _close(found[: one.size].reshape(one.shape), one)
        found = found[one.size :]
