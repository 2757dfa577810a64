"""The W4A16 and W8A16 kernels against numpy: every variant that runs here, shapes, groups, zero points, threads."""

from pathlib import Path

import numpy as np
import pytest
from native_programs import EMULATED, SANITIZED, Target, build, reason_to_skip, run
from weight_only_cases import (
    GROUPS,
    SHAPES,
    allowed_error,
    bfloat16,
    case_bytes,
    float32,
    isas,
    made,
    program_cases,
    reference_of,
)

from codesign.errors import CapabilityError, InputError
from codesign.native import absence, load
from codesign.native.call import Call

built = pytest.mark.skipif(absence() is not None, reason=str(absence()))

pytestmark = pytest.mark.parametrize("bits", [4, 8])
GUARD = 64
REFERENCES = {bits: reference_of(f"w{bits}a16_gemm") for bits in (4, 8)}


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", GROUPS)
@built
@pytest.mark.parametrize("isa", isas())
def test_equals_the_reference(bits: int, isa: int, group: int, asymmetric: bool) -> None:
    from codesign.native.gemm_bf16 import pack_weight_only, run_weight_only

    for m, n, k in SHAPES:
        w = made(bits, (n, k), group, asymmetric=asymmetric, seed=m)
        x = np.random.default_rng(n).standard_normal((m, k)).astype(np.float32)
        exact = REFERENCES[bits].multiply(x, w.codes, w.scales, w.zeros, group)
        allowed = allowed_error(x, REFERENCES[bits].dequantize(w.codes, w.scales, w.zeros, group))
        packed = pack_weight_only(bits, w.codes, w.scales, w.zeros, group)
        for threads in (1, 2, 3):
            found = run_weight_only(x, packed, Call(isa, threads))
            assert np.all(np.abs(found.astype(np.float64) - exact) <= allowed), (m, n, k, threads)


@built
@pytest.mark.parametrize("isa", isas())
def test_errs_less_than_rounding_activations_to_bfloat16(bits: int, isa: int) -> None:
    from codesign.native.gemm_bf16 import pack_weight_only, run_weight_only

    w = made(bits, (96, 1024), 128, asymmetric=True)
    x = np.random.default_rng(3).standard_t(3, (40, 1024)).astype(np.float32)  # with outliers
    exact = REFERENCES[bits].multiply(x, w.codes, w.scales, w.zeros, 128)
    rounded = REFERENCES[bits].multiply(float32(bfloat16(x)), w.codes, w.scales, w.zeros, 128)
    found = run_weight_only(x, pack_weight_only(bits, w.codes, w.scales, w.zeros, 128), Call(isa))
    assert np.linalg.norm(found - exact) < np.linalg.norm(rounded - exact) / 2


@built
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("largest_zero", [False, True])
def test_largest_products_do_not_overflow(bits: int, isa: int, largest_zero: bool) -> None:
    from codesign.native.gemm_bf16 import pack_weight_only, run_weight_only

    zero = largest_zero * ((1 << bits) - 1)
    codes = np.full((33, 1024), (1 << bits) - 1 - zero, np.uint8)
    scales, zeros = np.ones((33, 1), np.float32), np.full((33, 1), zero, np.uint8)
    packed = pack_weight_only(bits, codes, scales, zeros, 0)
    for sign in (1, -1):
        x = np.full((7, 1024), sign * 3.0, np.float32)
        exact = REFERENCES[bits].multiply(x, codes, scales, zeros, 0)
        assert np.allclose(run_weight_only(x, packed, Call(isa)), exact, rtol=1e-6, atol=0)


@built
@pytest.mark.parametrize("isa", isas())
def test_bfloat16_in_and_out(bits: int, isa: int) -> None:
    from codesign.native.gemm_bf16 import pack_weight_only, run_weight_only

    w = made(bits, (45, 256), 64, asymmetric=True)
    rounded = bfloat16(np.random.default_rng(1).standard_normal((9, 256)).astype(np.float32))
    exact = REFERENCES[bits].multiply(float32(rounded), w.codes, w.scales, w.zeros, 64)
    allowed = allowed_error(float32(rounded), REFERENCES[bits].dequantize(w.codes, w.scales, w.zeros, 64))
    packed = pack_weight_only(bits, w.codes, w.scales, w.zeros, 64)
    found = float32(run_weight_only(rounded, packed, Call(isa, bfloat16=True)))
    assert np.all(np.abs(found - exact) <= allowed + np.abs(exact) * 2.0**-8)


@built
@pytest.mark.parametrize("isa", isas())
def test_rows_that_are_zero_or_not_finite_stay_alone(bits: int, isa: int) -> None:
    from codesign.native.gemm_bf16 import pack_weight_only, run_weight_only

    w = made(bits, (20, 128), 32, asymmetric=False)
    codes = np.where(w.codes == 1 << (bits - 1), 0, w.codes).astype(np.uint8)
    x = np.ones((5, 128), np.float32)
    x[1], x[3, 100], x[4, 7] = 0, np.nan, -np.inf
    found = run_weight_only(x, pack_weight_only(bits, codes, w.scales, w.zeros, 32), Call(isa))
    assert np.isfinite(found[0]).all()
    assert np.array_equal(found[0], found[2])
    assert not found[1].any()
    assert not np.isfinite(found[3:]).any()


@pytest.mark.parametrize("asymmetric", [False, True])
@built
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("n", [1, 15, 31, 32, 100])
def test_writes_nothing_beyond_its_arrays(bits: int, isa: int, n: int, asymmetric: bool) -> None:
    native = load()
    m, k, group = 9, 96, 64
    w = made(bits, (n, k), group, asymmetric=asymmetric)
    run, pack = getattr(native, f"w{bits}a16_gemm_run"), getattr(native, f"w{bits}a16_gemm_pack")
    packed_bytes = getattr(native, f"w{bits}a16_gemm_packed_bytes")(n, k, group, asymmetric)
    scratch_bytes = getattr(native, f"w{bits}a16_gemm_workspace_bytes")(m, n, k, group, 2)
    packed, scratch = np.full(packed_bytes + 64 + GUARD, 7, np.uint8), np.full(scratch_bytes + GUARD, 7, np.uint8)
    out = np.full(m * n + 2 * GUARD, 7, np.float32)
    x = np.random.default_rng(0).standard_normal((m, k)).astype(np.float32)
    zeros = 0 if w.zeros is None else w.zeros.ctypes.data
    start = -packed.ctypes.data % 64  # packed weights lie on lines of 64 bytes
    address = packed.ctypes.data + start
    assert not pack(w.codes.ctypes.data, w.scales.ctypes.data, zeros, address, n, k, group)
    begin = out.ctypes.data + 4 * GUARD
    assert not run(isa, x.ctypes.data, 0, address, begin, 0, m, n, k, group, asymmetric, 2, scratch.ctypes.data)
    assert (packed[:start] == 7).all()
    assert (packed[start + packed_bytes :] == 7).all()
    assert (scratch[-GUARD:] == 7).all()
    assert (out[:GUARD] == 7).all()
    assert (out[-GUARD:] == 7).all()
    exact = REFERENCES[bits].multiply(x, w.codes, w.scales, w.zeros, group)
    allowed = allowed_error(x, REFERENCES[bits].dequantize(w.codes, w.scales, w.zeros, group))
    assert np.all(np.abs(out[GUARD:-GUARD].reshape(m, n) - exact) <= allowed)


@built
def test_wrong_arguments_are_errors_with_a_fix(bits: int) -> None:
    from codesign.native.gemm_bf16 import pack_weight_only, run_weight_only

    w = made(bits, (16, 64), 32, asymmetric=False)
    packed = pack_weight_only(bits, w.codes, w.scales, None, 32)
    x = np.ones((2, 64), np.float32)
    with pytest.raises(InputError, match="multiple of 32"):
        pack_weight_only(bits, w.codes[:, :63], w.scales, None, 32)
    with pytest.raises(InputError, match="the group 0, 32, 64 or 128"):
        pack_weight_only(bits, w.codes, w.scales, None, 48)
    with pytest.raises(InputError, match=r"\(16, 2\) is needed"):
        pack_weight_only(bits, w.codes, w.scales[:3], None, 32)
    with pytest.raises(InputError, match=r"\(2, 64\) is needed"):
        run_weight_only(x[:, :32], packed)
    with pytest.raises(InputError, match="float32, or bfloat16"):
        run_weight_only(x.astype(np.float64), packed)
    with pytest.raises(InputError, match="at least 1"):
        run_weight_only(x, packed, Call(threads=0))
    with pytest.raises(CapabilityError, match="variant"):
        run_weight_only(x, packed, Call(isa=17))


@built
@pytest.mark.slow
@pytest.mark.parametrize("target", [SANITIZED, EMULATED], ids=lambda target: target.name)
def test_a_program_equals_the_reference_under_sanitizers_and_emulation(
    bits: int, target: Target, tmp_path: Path
) -> None:
    if reason := reason_to_skip(target):
        pytest.skip(reason)
    cases = program_cases(bits, target.isas)
    found = np.frombuffer(run(build(f"w{bits}a16_gemm", target, tmp_path), target, case_bytes(cases)), np.float32)
    assert len(found) == sum(len(case.x) * len(case.weights.codes) for case in cases)
    at = 0
    for case in cases:
        x, w = case.x, case.weights
        exact = REFERENCES[bits].multiply(x, w.codes, w.scales, w.zeros, w.group)
        allowed = allowed_error(x, REFERENCES[bits].dequantize(w.codes, w.scales, w.zeros, w.group))
        out = found[at : at + exact.size].reshape(exact.shape)
        at += exact.size
        if load().isa_runs(case.isa) or target is EMULATED:
            assert np.all(np.abs(out - exact) <= allowed), (case.isa, exact.shape, w.group)
        else:
            assert np.isnan(out).all()
