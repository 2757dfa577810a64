from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.profiler.check import allowed_deviation, check_output, deviation, fingerprint
from codesign.profiler.kernel import AttentionCase, GemmCase, Prepared, gemm_inputs
from codesign.profiler.reference import attention, attention_inputs, quantize_int8, rounded

pytest.importorskip("torch", reason="outputs are checked against plain PyTorch")

CASE = GemmCase("BF16", 33, 48, 256)


def prepared(output, reference, math_dtype="bf16", exact=None) -> Prepared:
    return Prepared(lambda _copy: output, 1, np.asarray, lambda: reference, 1.0, math_dtype, exact)


def bf16_product() -> tuple[np.ndarray, np.ndarray]:
    inputs = gemm_inputs(CASE)
    exact = rounded(inputs.x, "bf16").astype(np.float64) @ rounded(inputs.w, "bf16").astype(np.float64).T
    return rounded(exact.astype(np.float32), "bf16"), exact


def test_a_right_output_passes_and_says_how_far_it_is():
    output, exact = bf16_product()
    check = check_output(prepared(output, exact), CASE)
    assert check.passed
    assert check.reason == ""
    assert 1e-3 < check.error_fraction < check.allowed_fraction < 1e-2


@settings(max_examples=30, deadline=None)
@given(row=st.integers(0, 32), column=st.integers(0, 47), off=st.sampled_from([0.1, -0.1, 1e6]))
def test_one_wrong_element_fails_and_is_named(row, column, off):
    output, exact = bf16_product()
    output = output.copy()
    output[row, column] += off
    check = check_output(prepared(output, exact), CASE)
    assert not check.passed
    assert off == 1e6 or f"[{row}, {column}]" in check.reason


def test_an_output_twice_as_far_as_allowed_fails():
    _output, exact = bf16_product()
    allowed = allowed_deviation(CASE, "bf16")
    noise = np.random.default_rng(1).standard_normal(exact.shape) * 2 * allowed.fraction
    assert not check_output(prepared(exact + noise, exact), CASE).passed
    assert check_output(prepared(exact + noise / 4, exact), CASE).passed


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_fail_without_a_figure(wrong):
    output, exact = bf16_product()
    output = output.copy()
    output[0, 0] = wrong
    check = check_output(prepared(output, exact), CASE)
    assert (check.passed, check.error_fraction) == (False, None)
    assert "1 of 1584 outputs" in check.reason


def test_an_output_of_another_shape_fails():
    output, exact = bf16_product()
    check = check_output(prepared(output.T, exact), CASE)
    assert not check.passed
    assert "(48, 33) instead of (33, 48)" in check.reason


def test_what_is_asked_of_fp32_is_stricter_than_of_16_bits():
    allowed = [allowed_deviation(CASE, name).fraction for name in ("fp32", "fp16", "bf16")]
    assert allowed == sorted(allowed)
    assert allowed[0] < 1e-4
    assert allowed[2] < 1e-2


def test_a_bf16_output_does_not_pass_as_fp32():
    output, exact = bf16_product()
    assert not check_output(prepared(output, exact, "fp32"), replace(CASE, scheme="FP32")).passed


def rounded_and_exact() -> tuple[np.ndarray, np.ndarray]:
    """Return the product with int8 activations and with unrounded ones."""
    inputs = gemm_inputs(CASE)
    w = inputs.w.astype(np.float64).T
    return quantize_int8(inputs.x, CASE.k).dequantized() @ w, inputs.x.astype(np.float64) @ w


def test_a_kernel_that_multiplies_in_fp32_instead_of_int8_is_found_out():
    in_int8, in_fp32 = rounded_and_exact()
    honest = prepared(in_int8, in_int8, "int8", lambda: in_fp32)
    other = prepared(in_fp32, in_int8, "int8", lambda: in_fp32)
    assert check_output(honest, CASE).passed
    assert fingerprint(honest, in_int8, in_int8).achieved == "int8"
    check = check_output(other, CASE)
    assert not check.passed
    assert "it multiplied in fp32, not in int8" in check.reason


def test_a_bf16_kernel_that_multiplies_in_fp32_passes_and_says_so():
    _output, exact = bf16_product()
    check = check_output(prepared(exact, exact), CASE)
    assert check.passed
    assert check.reason == "it multiplied in fp32, not in bf16"


def test_a_fingerprint_may_be_of_the_first_columns():
    in_int8, in_fp32 = rounded_and_exact()
    found = fingerprint(prepared(in_int8, in_int8, "int8", lambda: in_fp32[:, :8]), in_int8, in_int8)
    assert (found.requested, found.achieved) == ("int8", "int8")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_fingerprint_tells_precisions_apart(precision):
    inputs = gemm_inputs(CASE)
    exact = inputs.x.astype(np.float64) @ inputs.w.astype(np.float64).T
    low = rounded(inputs.x, precision).astype(np.float64) @ rounded(inputs.w, precision).astype(np.float64).T
    output = rounded(low.astype(np.float32), precision)
    assert fingerprint(prepared(output, exact), output, exact).achieved == precision


@pytest.mark.parametrize("tokens", [(1, 40), (8, 8), (5, 20)])
def test_attention_is_checked_likewise(tokens):
    case = AttentionCase("bf16", 2, 4, 2, 32, *tokens)
    inputs = attention_inputs(case)
    exact = attention(*(rounded(part, "bf16").astype(np.float64) for part in (inputs.q, inputs.k, inputs.v)))
    output = rounded(exact.astype(np.float32), "bf16")
    assert check_output(prepared(output, exact), case).passed
    output[1, 3, 0, 5] += 0.5
    assert not check_output(prepared(output, exact), case).passed


def test_deviation_names_the_worst():
    found = deviation(np.array([[1.0, 1.0], [1.0, 3.0]]), np.ones((2, 2)))
    assert (found.fraction, found.worst_fraction, found.worst_at) == (1.0, 2.0, (1, 1))
