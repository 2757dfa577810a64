"""Fake quantization: the forward is the stored value, the gradients those of the LSQ paper (arXiv 1902.08153)."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize.numbers import codec_of
from codesign.quantize.tiles import from_tiles, in_tiles, over_tiles, stored_matrix, tile_of
from codesign.schemes.catalog import SCHEMES, parse_scheme

torch = pytest.importorskip("torch", reason="training needs torch")

from codesign.quantize.lsq import (  # noqa: E402
    Rounding,
    bounds,
    fake_quantize,
    gradient_scale,
    initial_steps,
    pass_through,
)
from codesign.quantize.round import quantize_weight  # noqa: E402

WITH_SCALES = [scheme for scheme in SCHEMES.values() if scheme.family != "gguf" and scheme.quantized]
PLAIN = ["W8A16", "W4A16-g64", "W3A16-g32", "W2A16", "W1A16-g128", "W8A8-tensor", "W4A16-g64-asym", "W4A16-g64-asym16"]


def values(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def rounding_of(scheme, n, k, scale=1.0):
    return Rounding(scheme.weights, tile_of(scheme.weights, n, k), torch.float32, scale)


def begun(name, n, k, seed=0):
    """Return a matrix, shrunk steps, so that values are clipped on both sides, zero points and the rounding."""
    scheme, w = parse_scheme(name), values(n, k, seed)
    scales = quantize_weight(w, scheme).scales
    steps = (scales.effective() * 0.6).requires_grad_()
    return w.requires_grad_(), steps, scales.zero_points, rounding_of(scheme, n, k)


def straight_through(w, steps, zero_points, rounding):
    """Return the forward of LSQ in plain operations: clip, then a rounding whose gradient is one (their equation 1)."""
    tiles = in_tiles(w, rounding.tile)
    points = None if zero_points is None else over_tiles(zero_points)
    shift = 0 if points is None else points.float()
    low, high = (torch.as_tensor(bound) - shift for bound in bounds(rounding.codec))
    scaled = tiles / over_tiles(steps)
    clipped = torch.minimum(torch.maximum(scaled, low), high)
    codes = rounding.codec.encode(scaled.detach().clone(), points)
    rounded = clipped + (rounding.codec.decode(codes, points) - clipped).detach()
    return from_tiles(rounded * over_tiles(steps), *w.shape)


@pytest.mark.parametrize("scheme", WITH_SCALES, ids=str)
@pytest.mark.parametrize("shape", [(3, 64), (130, 200), (700, 500)])
def test_the_forward_is_what_is_stored(scheme, shape):
    w = values(*shape)
    stored = quantize_weight(w, scheme)
    matrix = stored_matrix(w, scheme.weights)
    out = fake_quantize(matrix, stored.scales.effective(), stored.zero_points, rounding_of(scheme, *shape))
    assert torch.equal(out.reshape(-1)[: w.numel()].reshape(shape), stored.dequantize())


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(5, 64), (7, 200), (600, 500)])
def test_gradients_are_those_of_autograd_through_clip_and_straight_through_rounding(name, shape):
    w, steps, zero_points, rounding = begun(name, *shape)
    upstream = values(*shape, seed=1)
    found = torch.autograd.grad(fake_quantize(w, steps, zero_points, rounding), (w, steps), upstream)
    other = torch.autograd.grad(straight_through(w, steps, zero_points, rounding), (w, steps), upstream)
    torch.testing.assert_close(found[0], other[0])
    assert 0 < float((found[0] == 0).float().mean()) < 0.9  # some are clipped, most are not
    torch.testing.assert_close(found[1], other[1], rtol=1e-3, atol=1e-3 * math.sqrt(shape[0] * shape[1]))


def test_the_step_has_the_gradient_of_equation_3():
    """Q_N = 8, Q_P = 7: -v/s + round(v/s) inside, -Q_N and Q_P outside, all times g."""
    scaled = torch.tensor([[0.3, 0.7, -2.4, 6.9, 7.0, 7.2, 40.0, -7.9, -8.0, -8.4, -40.0]])
    wanted = torch.tensor([-0.3, 0.3, 0.4, 0.1, 7.0, 7.0, 7.0, -0.1, -8.0, -8.0, -8.0])
    step, g = 0.25, 0.125
    rounding = rounding_of(parse_scheme("W4A16"), 1, 1, g)
    for value, expected in zip(scaled[0], wanted, strict=True):
        steps = torch.tensor([[step]], requires_grad=True)
        fake_quantize((value * step).reshape(1, 1), steps, None, rounding).backward()
        assert float(steps.grad) == pytest.approx(float(expected) * g, abs=1e-6)


def test_the_scale_of_gradients_is_that_of_the_paper():
    assert gradient_scale(64, parse_scheme("W4A16-g64").weights) == pytest.approx(1 / math.sqrt(64 * 7))
    assert gradient_scale(576, parse_scheme("W4A16-asym").weights) == pytest.approx(1 / math.sqrt(576 * 15))


@pytest.mark.parametrize("name", ["W4A16-g64", "W3A16", "W4A16-g64-asym"])
def test_a_clipped_value_moves_with_the_step_as_finite_differences_say(name):
    w, steps, zero_points, rounding = begun(name, 4, 128)
    with torch.no_grad():
        w += torch.sign(w) * 50
        high = fake_quantize(w, steps + 1e-3, zero_points, rounding).double().sum()
        low = fake_quantize(w, steps - 1e-3, zero_points, rounding).double().sum()
    fake_quantize(w, steps, zero_points, rounding).sum().backward()
    assert float(steps.grad.sum()) == pytest.approx(float((high - low) / 2e-3), rel=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_torch_learnable_fake_quantize_agrees(bits):
    """torch clips by the rounded value, the paper by the exact one: half a step beyond the ends is left out."""
    scheme = parse_scheme(f"W{bits}A16")
    half = 2 ** (bits - 1)
    w = values(6, 300) * 3
    steps = torch.full((6, 1), 1.0 / half * 2)
    scaled = w / steps
    between = ((scaled >= half - 1) & (scaled < half - 0.5)) | ((scaled <= -half) & (scaled > -half - 0.5))
    w = torch.where(between, 0.1 * steps, w)
    mine, theirs = ((w.clone().requires_grad_(), steps.clone().requires_grad_()) for _ in range(2))
    g, upstream = 0.37, values(6, 300, seed=2)
    out = fake_quantize(*mine, None, rounding_of(scheme, 6, 300, g))
    out.backward(upstream)
    flat = theirs[1].reshape(6)
    reference = torch._fake_quantize_learnable_per_channel_affine(
        theirs[0], flat, torch.zeros(6), 0, -half, half - 1, g
    )
    reference.backward(upstream)
    torch.testing.assert_close(out, reference)
    # torch gives no factor to the values' gradient, only to the steps'.
    torch.testing.assert_close(mine[0].grad, theirs[0].grad)
    torch.testing.assert_close(mine[1].grad, theirs[1].grad, rtol=1e-4, atol=1e-3)


def test_padding_of_ragged_groups_has_no_part_in_gradients():
    w, steps, zero_points, rounding = begun("W4A16-g128-asym", 3, 200)
    whole = fake_quantize(w, steps, zero_points, rounding)
    tail = Rounding(rounding.weights, tile_of(rounding.weights, 3, 72), torch.float32, 1.0)
    part = fake_quantize(w[:, 128:], steps[:, 1:], zero_points[:, 1:], tail)
    assert torch.equal(whole[:, 128:], part)
    of_whole = torch.autograd.grad(whole.sum(), steps)[0][:, 1]
    of_part = torch.autograd.grad(part.sum(), steps)[0][:, 1]
    torch.testing.assert_close(of_whole, of_part)


def test_steps_are_rounded_to_the_type_they_are_stored_in():
    w, exact = values(4, 64), torch.full((4, 1), 0.1234567)
    scheme = parse_scheme("W4A16")
    halved = Rounding(scheme.weights, tile_of(scheme.weights, 4, 64), torch.float16, 1.0)
    out = fake_quantize(w, exact, None, halved)
    assert torch.equal(out, fake_quantize(w, exact.half().float(), None, rounding_of(scheme, 4, 64)))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(PLAIN), n=st.integers(1, 20), k=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_no_gradient_passes_a_clipped_value_and_all_of_it_another(name, n, k, seed):
    w, steps, zero_points, rounding = begun(name, n, k, seed)
    out = fake_quantize(w, steps, zero_points, rounding)
    gradient = torch.autograd.grad(out.sum(), w)[0]
    assert set(gradient.unique().tolist()) <= {0.0, 1.0}
    error = (out - w).abs().detach() / from_tiles(
        over_tiles(steps).expand(in_tiles(w, rounding.tile).shape), n, k
    ).detach()
    limit = 1.0 if rounding.weights.bits == 1 else 0.5
    assert float((error * gradient).max()) <= limit + (0.5 if rounding.weights.zero_point_bits == 4 else 0) + 1e-3


def test_first_steps_are_twice_the_mean_over_the_root_of_the_largest_code():
    w = torch.cat((torch.full((2, 64), -0.5), torch.full((2, 6), 0.25)), dim=1)
    found = initial_steps(w, parse_scheme("W4A16-g64").weights)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5]] * 2) / math.sqrt(7))
    assert float(initial_steps(torch.zeros(1, 8), parse_scheme("W4A16").weights)) == 1.0
    with pytest.raises(InputError, match="zero points starts from rtn or gptq"):
        initial_steps(w, parse_scheme("W4A16-g64-asym").weights)


def test_the_bounds_are_those_of_the_codes():
    assert bounds(codec_of(parse_scheme("W4A16").weights)) == (-8.0, 7.0)
    assert bounds(codec_of(parse_scheme("W4A16-asym").weights)) == (0.0, 15.0)
    assert bounds(codec_of(parse_scheme("W1A16-g128").weights)) == (-1.0, 1.0)
    assert bounds(codec_of(parse_scheme("FP8-channel").weights)) == (-448.0, 448.0)


def test_what_passes_through_has_the_value_of_the_rounded_and_the_gradient_of_the_exact():
    x = values(3, 4).requires_grad_()
    out = pass_through(x, x.detach().round())
    upstream = values(3, 4, seed=1)
    out.backward(upstream)
    assert torch.equal(out, x.detach().round())
    assert torch.equal(x.grad, upstream)
