import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import CapabilityError
from codesign.profiler.weights import quantize
from codesign.quantize.numbers import NF4_LEVELS
from codesign.quantize.round import quantize_weight
from codesign.schemes.catalog import parse_scheme

torch = pytest.importorskip("torch", reason="weights are rounded with torch")

SCHEMES = (
    "W8A16", "W8A8", "W8A8-tensor", "W4A16", "W4A16-g32", "W4A16-g128", "W4A8-g64-asym", "W3A16-g32", "FP8",
    "FP8-block",
)  # fmt: skip


def matrix(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)


@settings(max_examples=60, deadline=None)
@given(scheme=st.sampled_from(SCHEMES), n=st.integers(1, 9), k=st.integers(1, 140), seed=st.integers(0, 99))
def test_every_weight_is_stored_as_the_nearest_code(scheme, n, k, seed):
    w = matrix(n, k, seed)
    stored = quantize(w, parse_scheme(scheme))
    values = stored.dequantized()
    scale = stored.spread(stored.scales).astype(np.float64)
    if stored.levels is None:
        step = scale
    else:
        levels = np.sort([level for level in stored.levels if np.isfinite(level)])
        step = np.diff(levels).max() * scale
    assert values.shape == w.shape
    assert (np.abs(values - w) <= step * 0.501 + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(scheme=st.sampled_from(SCHEMES), n=st.integers(1, 9), k=st.integers(1, 140))
def test_the_values_are_those_of_the_quantizer(scheme, n, k):
    w = torch.from_numpy(matrix(n, k))
    # 16-bit scales have the type of the weights there, fp16 beside float32.
    precision = "fp16" if parse_scheme(scheme).weights.scale_bits == 16 else "fp32"
    wanted = quantize_weight(w, parse_scheme(scheme)).dequantize().numpy()
    np.testing.assert_allclose(quantize(w.numpy(), parse_scheme(scheme), precision).dequantized(), wanted, rtol=1e-6)


def test_scales_are_rounded_to_the_precision_of_the_library():
    stored = quantize(matrix(3, 64), parse_scheme("W4A16-g32"), "bf16")
    assert not (stored.scales.view(np.uint32) & 0xFFFF).any()


def test_groups_of_normal_floats_have_plain_scales_row_by_row():
    w = np.tile(np.array(NF4_LEVELS, np.float32), (3, 8)) * np.array([[0.5], [1], [3]], np.float32)
    stored = quantize(w, parse_scheme("NF4"))
    assert stored.scales.tolist() == [[0.5] * 2, [1] * 2, [3] * 2]
    np.testing.assert_allclose(stored.dequantized(), w, rtol=1e-6)


@pytest.mark.parametrize("scheme", [*SCHEMES, "NF4"])
def test_zeros_are_stored_exactly(scheme):
    assert not quantize(np.zeros((3, 64), np.float32), parse_scheme(scheme)).dequantized().any()


def test_codes_stay_within_their_bits():
    stored = quantize(matrix(4, 96), parse_scheme("W4A16-g32"))
    assert stored.codes.min() >= -8
    assert stored.codes.max() == 7
    asymmetric = quantize(matrix(4, 96), parse_scheme("W4A16-g32-asym"))
    assert (asymmetric.codes.min(), asymmetric.codes.max()) == (0, 15)


def test_a_short_last_group_has_its_own_scale():
    w = np.ones((1, 40), np.float32)
    w[0, 32:] = 100
    stored = quantize(w, parse_scheme("W4A16-g32-asym"))
    assert stored.scales.shape == (1, 2)
    np.testing.assert_allclose(stored.dequantized(), w, rtol=1e-6)


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CapabilityError, match="pip install torch"):
        quantize(np.ones((1, 32), np.float32), parse_scheme("W8A8"))
