import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize.hqq import HqqOptions, hqq
from codesign.quantize.round import quantize_weight
from codesign.schemes.catalog import parse_scheme

torch = pytest.importorskip("torch", reason="HQQ needs torch")

SCHEMES = ("W4A16-g64-asym16", "W4A16-g32-asym", "W3A16-g64-asym16", "W2A16-g16-asym", "W8A16-asym16")


def heavy_tailed(n: int, k: int, seed: int = 0) -> "torch.Tensor":
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator) * torch.randn(n, k, generator=generator).exp()


def norm_by_group(w: "torch.Tensor", rounded: "torch.Tensor", size: int, norm: float = 0.7) -> "torch.Tensor":
    return (rounded - w).abs().pow(norm).view(len(w), -1, size).sum(dim=2)


@settings(max_examples=30)
@given(name=st.sampled_from(SCHEMES), n=st.integers(1, 20), seed=st.integers(0, 2**20))
def test_no_group_errs_more_in_the_norm_than_rounded_to_nearest(name, n, seed):
    w, scheme = heavy_tailed(n, 192, seed), parse_scheme(name)
    found, nearest = hqq(w, scheme), quantize_weight(w, scheme)
    size = getattr(scheme.weights.granularity, "size", 192)
    ours = norm_by_group(w, found.weight.dequantize(), size)
    plain = norm_by_group(w, nearest.dequantize(), size)
    assert bool((ours <= plain * (1 + 1e-5)).all())
    assert found.errors[0] == pytest.approx(float(plain.sum()), rel=1e-4)
    assert found.errors[-1] == pytest.approx(float(ours.sum()), rel=1e-4)
    assert all(after <= before for before, after in zip(found.errors, found.errors[1:], strict=False))


@pytest.mark.parametrize(("name", "gain"), [("W4A16-g64-asym16", 0.985), ("W2A16-g64-asym16", 0.97)])
def test_the_objective_falls_where_weights_have_outliers(name, gain):
    found = hqq(heavy_tailed(200, 512), parse_scheme(name))
    assert found.errors[-1] < gain * found.errors[0]


def test_scales_stay_those_of_rounding_to_nearest():
    w, scheme = heavy_tailed(8, 128), parse_scheme("W4A16-g64-asym16")
    assert torch.equal(hqq(w, scheme).weight.scales.stored, quantize_weight(w, scheme).scales.stored)


def test_no_steps_are_rounding_to_nearest():
    w, scheme = heavy_tailed(8, 128), parse_scheme("W4A16-g32-asym")
    found, nearest = hqq(w, scheme, HqqOptions(steps=0)).weight, quantize_weight(w, scheme)
    assert torch.equal(found.codes, nearest.codes)
    assert torch.equal(found.zero_points, nearest.zero_points)


def test_results_do_not_depend_on_how_rows_are_chunked():
    w, scheme = heavy_tailed(600, 1024), parse_scheme("W4A16-g64-asym16")
    assert torch.equal(hqq(w, scheme).weight.codes[500:], hqq(w[500:], scheme).weight.codes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("W4A16-g64", "zero points, which W4A16-g64 has none of; use W4A16-g64-asym16"),
        ("NVFP4", "integers in groups"),
        ("Q4_K", "integers in groups"),
        ("NF4", "integers in groups"),
    ],
)
def test_schemes_without_zero_points_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        hqq(heavy_tailed(4, 256), parse_scheme(name))


def test_damaged_weights_are_refused():
    w = heavy_tailed(4, 64)
    w[2, 3] = torch.nan
    with pytest.raises(InputError, match=r"1 NaN .* \(2\)"):
        hqq(w, parse_scheme("W4A16-g64-asym16"))
