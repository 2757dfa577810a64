import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize.activations import quantize_activations
from codesign.quantize.awq import clipped, search_fold
from codesign.quantize.calibrate import METHODS, ActivationRange, HistogramSum, activation_range
from codesign.quantize.errors import error_metrics, hessian_error, output_errors
from codesign.quantize.fold import Fold
from codesign.quantize.gptq import GptqOptions, gptq
from codesign.quantize.hadamard import rotation
from codesign.quantize.round import quantize_weight
from codesign.quantize.smoothquant import search_smoothing, smoothing
from codesign.quantize.statistics import StatisticsSum
from codesign.schemes.catalog import parse_scheme

torch = pytest.importorskip("torch", reason="quantizers need torch")

GPTQ_SCHEMES = ("W4A16-g64", "W4A16-g32-asym", "W3A16", "W2A16-g16", "W8A8-tensor", "FP8-block", "NVFP4", "NF4-single",
                "MXFP4", "W4A16-g64-asym16")  # fmt: skip
OPTIONS = [GptqOptions(act_order=order, clip=clip, block=block) for order, clip, block in
           ((True, True, 128), (False, True, 128), (True, False, 7), (False, False, 48))]  # fmt: skip


def random(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(tokens: int, k: int, seed: int = 0) -> "torch.Tensor":
    scales = random(k, seed=seed + 2).exp()
    return random(tokens, k, seed=seed) @ random(k, k, seed=seed + 1) * scales


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(GPTQ_SCHEMES),
    options=st.sampled_from(OPTIONS),
    n=st.integers(1, 9),
    k=st.sampled_from([64, 128, 192]),
    seed=st.integers(0, 2**20),
)
def test_gptq_is_never_worse_than_rounding_to_nearest(name, options, n, k, seed):
    w, x = random(n, k, seed=seed), correlated_inputs(k + 20, k, seed)
    hessian, scheme = x.T @ x, parse_scheme(name)
    result = gptq(w, hessian, scheme, options)
    error = float(hessian_error(result.weight.dequantize() - w, hessian).sum())
    assert error <= result.nearest_error * (1 + 1e-4)
    assert error == pytest.approx(result.error, rel=1e-3)


@pytest.mark.parametrize("name", ["W4A16-g64", "W4A16-g32-asym", "FP8-block", "NVFP4"])
def test_gptq_halves_the_error_on_correlated_inputs(name):
    w, x = random(40, 256), correlated_inputs(1000, 256)
    result = gptq(w, x.T @ x, parse_scheme(name))
    assert result.error < 0.6 * result.nearest_error
    assert result.kept_nearest_rows == 0


@pytest.mark.parametrize("name", GPTQ_SCHEMES)
@pytest.mark.parametrize("options", OPTIONS)
def test_gptq_is_rounding_to_nearest_for_a_diagonal_hessian(name, options):
    w, scheme = random(6, 192), parse_scheme(name)
    result = gptq(w, torch.diag(random(192).square() + 0.1), scheme, options)
    assert result.error == result.nearest_error
    if not options.clip:
        nearest = quantize_weight(w, scheme)
        assert torch.equal(result.weight.codes, nearest.codes)
        assert torch.equal(result.weight.scales.effective(), nearest.scales.effective())


def test_the_last_of_two_columns_makes_up_for_the_first_as_well_as_any_code_can():
    scheme = parse_scheme("W3A16")
    w, hessian = random(50, 2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    result = gptq(w, hessian, scheme, GptqOptions(damping=1e-6, act_order=False, clip=False))
    scales = quantize_weight(w, scheme).scales.effective()
    first = result.weight.codes[:, :1].float()
    pairs = [torch.cat((first, torch.full_like(first, code)), dim=1) for code in range(-4, 4)]
    best = torch.stack([hessian_error(pair * scales - w, hessian) for pair in pairs]).amin(dim=0)
    assert torch.allclose(hessian_error(result.weight.dequantize() - w, hessian), best, rtol=1e-4)


@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_does_not_clip_weights_that_meet_massive_inputs(act_order):
    """A few channels of LLMs are hundreds of times larger: least squared errors of weights alone would clip those."""
    x, w = random(512, 256), random(64, 256, seed=1)
    x[:, ::64] *= 300.0
    w[:, ::64] *= 2.0
    clipped, whole = (
        gptq(w, x.T @ x, parse_scheme("W4A16-g64"), GptqOptions(act_order=act_order, clip=clip)).error
        for clip in (True, False)
    )
    assert clipped < whole


def test_gptq_handles_a_ragged_last_group_and_dead_inputs():
    w, x = random(8, 100), correlated_inputs(300, 100)
    x[:, [0, 50]] = 0
    for options in OPTIONS:
        result = gptq(w, x.T @ x, parse_scheme("W4A16-g64"), options)
        assert result.weight.scales.stored.shape == (8, 2)
        assert result.error < result.nearest_error


def test_gptq_damps_more_where_the_hessian_is_singular():
    w, x = random(4, 64), random(3, 64)
    result = gptq(w, x.T @ x, parse_scheme("W4A16-g32"))
    assert result.error <= result.nearest_error
    assert result.damping >= 0.01


@pytest.mark.parametrize(
    ("scheme", "hessian", "message"),
    [
        ("Q4_K", torch.eye(96), "Use W4A16"),
        ("BF16", torch.eye(96), "Use W4A16"),
        ("W4A16", torch.eye(95), r"for 96 input channels"),
        ("W4A16", torch.eye(96) * torch.nan, "Hessian has"),
        ("W4A16", -torch.eye(96), "more calibration text"),
        ("NF4", torch.eye(96), "across the ends of rows"),
    ],
)
def test_gptq_refuses_what_it_cannot_do(scheme, hessian, message):
    with pytest.raises(InputError, match=message):
        gptq(random(2, 96), hessian, parse_scheme(scheme))


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 200), seed=st.integers(0, 99))
def test_folding_changes_nothing_before_rounding(k, seed):
    x, w, gain = random(5, k, seed=seed).double(), random(4, k, seed=seed + 1).double(), random(k, seed=seed + 2)
    fold = Fold(random(k, seed=seed + 3).exp())
    normed = x * gain.double()
    # What folding returns is rounded to the type of the weights; in float32 that is all the difference there is.
    moved = (x * fold.out_of_norm(gain).double()) @ fold.into_weights(w.float()).double().T
    assert torch.allclose(moved, normed @ w.T, rtol=1e-5, atol=1e-4)
    before = random(k, 7, seed=seed + 4)
    y = random(3, 7, seed=seed)
    assert torch.allclose((y @ fold.out_of_rows(before).T) * fold.factors, y @ before.T, rtol=1e-4, atol=1e-4)


def test_folding_into_an_operation_of_another_width_is_refused():
    fold = Fold(torch.ones(8))
    with pytest.raises(InputError, match="8 channel scales"):
        fold.out_of_norm(torch.ones(4))
    with pytest.raises(InputError, match="grouped-query"):
        fold.out_of_rows(torch.ones(4, 2))


def collected(x: "torch.Tensor"):
    total = StatisticsSum(x.shape[-1])
    total.add(x)
    return total.result()


def inputs_with_outliers(k: int = 128) -> "torch.Tensor":
    x = random(400, k) * random(k, seed=5).exp()
    x[:, 3] *= 50
    return x


def test_awq_lowers_the_output_error_and_never_raises_it():
    x, scheme = inputs_with_outliers(), parse_scheme("W4A16-g64")
    layers = [random(24, 128), random(8, 128, seed=9)]
    found = search_fold(layers, collected(x), scheme)
    assert found.error < 0.8 * found.nearest_error
    assert 0 < found.exponent < 1
    measured = sum(
        float(
            (x @ (quantize_weight(found.fold.into_weights(w), scheme).dequantize() / found.fold.factors - w).T)
            .square()
            .sum()
        )
        for w in layers
    )
    assert measured == pytest.approx(found.error, rel=1e-3)
    flat = search_fold(layers, collected(torch.ones(4, 128) * random(4, 1)), scheme)
    assert flat.error <= flat.nearest_error


@pytest.mark.parametrize("name", ["W4A16-g64", "W3A16-g32", "W4A16", "W4A16-g64-asym"])
def test_clipping_lowers_the_error_of_every_group_by_itself(name):
    x, w, scheme = inputs_with_outliers(), random(16, 128), parse_scheme(name)
    statistics = collected(x)
    found, nearest = clipped(w, statistics, scheme), quantize_weight(w, scheme)
    size = found.tile.columns
    for first in range(0, 128, size):
        columns = slice(first, first + size)
        block = statistics.hessian[columns, columns]
        ours = hessian_error((found.dequantize() - w)[:, columns], block)
        plain = hessian_error((nearest.dequantize() - w)[:, columns], block)
        assert bool((ours <= plain * (1 + 1e-4)).all())


def test_clipping_needs_plain_scales():
    with pytest.raises(InputError, match="plain scales"):
        clipped(random(4, 64), collected(random(9, 64)), parse_scheme("NVFP4"))


def test_smoothing_lowers_the_error_of_outliers():
    x, w, scheme = inputs_with_outliers(), random(24, 128), parse_scheme("W8A8")
    found = search_smoothing([w], x, scheme, x.abs().amax(dim=0))
    assert found.strength is not None
    assert found.error < 0.3 * found.plain_error


def test_smoothing_is_exact_before_rounding():
    x, w = inputs_with_outliers().double(), random(24, 128)
    fold = smoothing([w], x.abs().amax(dim=0), 0.5)
    moved = (x / fold.factors.double()) @ (w.double() * fold.factors.double()).T
    assert torch.allclose(moved, x @ w.double().T, rtol=1e-12)
    # Equation 4 with a half evens out the ranges of inputs and weights.
    assert torch.allclose((x.abs().amax(dim=0) / fold.factors).float(), (w.abs().amax(dim=0) * fold.factors), rtol=1e-4)


def test_smoothing_keeps_dead_channels_and_refuses_16_bit_activations():
    x, w = inputs_with_outliers(), random(4, 128)
    x[:, 7], w[:, 9] = 0, 0
    assert bool(smoothing([w], x.abs().amax(dim=0), 0.5).factors[[7, 9]].eq(1).all())
    with pytest.raises(InputError, match="Use W8A8"):
        search_smoothing([w], x, parse_scheme("W4A16"), x.abs().amax(dim=0))


@pytest.mark.parametrize(
    ("k", "block"), [(1, 1), (64, 64), (576, 576), (1536, 1536), (11008, 256), (14336, 14336), (9, 1)]
)
def test_rotations_are_orthogonal_and_mix_whole_blocks(k, block):
    turn = rotation(k, seed=3)
    assert turn.block == block
    x, w = random(2, k), random(3, k, seed=1)
    assert torch.allclose(turn.undo(turn.apply(x)), x, atol=1e-4)
    assert torch.allclose(turn.apply(x) @ turn.apply(w).T, x @ w.T, rtol=1e-3, atol=1e-3 * k**0.5)
    unit = torch.zeros(1, k)
    unit[0, 0] = 1
    spread = turn.apply(unit)[0, :block].abs()
    assert torch.allclose(spread, torch.full((block,), block**-0.5), rtol=1e-4)


def test_rotation_makes_four_bit_activations_bearable():
    x, w, scheme = inputs_with_outliers(), random(24, 128), parse_scheme("W4A4")
    turn = rotation(128)
    plain = output_errors(x, w, w, x_rounded=quantize_activations(x, scheme.activations))
    turned = output_errors(
        turn.apply(x), turn.apply(w), turn.apply(w), x_rounded=quantize_activations(turn.apply(x), scheme.activations)
    )
    assert turned.snr_db > plain.snr_db + 3


def test_errors_by_hand():
    found = error_metrics(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    assert found.mse == 0.5
    assert found.mae == 0.5
    assert found.max == 1
    assert found.snr_db == pytest.approx(10 * math.log10(25))
    assert found.cosine == pytest.approx(21 / math.sqrt(25 * 18))
    same = error_metrics(torch.zeros(3), torch.zeros(3))
    assert (same.snr_db, same.cosine) == (math.inf, 1.0)
    with pytest.raises(InputError, match="have no error"):
        error_metrics(torch.zeros(3), torch.zeros(2))


def test_the_hessian_error_is_the_squared_error_of_the_outputs():
    x, w = correlated_inputs(100, 20), random(5, 20)
    rounded = quantize_weight(w, parse_scheme("W4A16")).dequantize()
    assert float(hessian_error(rounded - w, x.T @ x).sum()) == pytest.approx(
        output_errors(x, w, rounded).mse * 500, rel=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), seed=st.integers(0, 99))
def test_statistics_do_not_depend_on_the_batches(sizes, seed):
    x = random(sum(sizes), 6, seed=seed)
    total = StatisticsSum(6)
    for part in x.split(sizes):
        total.add(part)
    parts, whole = total.result(), collected(x)
    assert parts.token_count == whole.token_count == len(x)
    for name in ("minimum", "maximum", "mean", "mean_magnitude", "hessian", "largest"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert torch.allclose(whole.hessian, x.T @ x, atol=1e-4)


def test_statistics_name_dead_and_outlying_channels():
    x = random(50, 16)
    x[:, 2], x[:, 4] = 0, x[:, 4] * 100
    found = collected(x)
    assert found.dead_channels == (2,)
    assert found.outlier_channels == (4,)


def test_statistics_refuse_nan_other_widths_and_nothing():
    total = StatisticsSum(4)
    with pytest.raises(InputError, match="No inputs"):
        total.result()
    with pytest.raises(InputError, match="the layer takes 4"):
        total.add(torch.zeros(2, 3))
    with pytest.raises(InputError, match="the first is 1"):
        total.add(torch.tensor([[0.0, torch.nan, 0.0, torch.inf]]))


def histogram_of(*batches: "torch.Tensor"):
    total = HistogramSum()
    for batch in batches:
        total.add(batch)
    return total.result()


def test_no_range_is_wider_than_what_was_seen_and_min_max_is_all_of_it():
    found = histogram_of(random(20000), torch.tensor([-50.0, 40.0]))
    every = {method: activation_range(found, method) for method in METHODS}
    assert every["min-max"] == ActivationRange(found.minimum, found.maximum)
    assert all(found.minimum <= r.low <= 0 <= r.high <= found.maximum for r in every.values())
    assert every["percentile"].high < found.maximum


def test_a_wider_batch_merges_bins_and_loses_no_count():
    found = histogram_of(random(1000), torch.tensor([100.0]), torch.zeros(3))
    assert found.counts.sum() == 1004
    assert found.largest == 100
    assert found.limit >= 100


def test_the_least_squares_range_beats_the_others():
    x = torch.cat((random(20000), torch.tensor([60.0])))
    found = histogram_of(x)
    errors = {}
    for method in METHODS:
        step = activation_range(found, method, bits=4).symmetric_scale(4)
        errors[method] = float(((x / step).round().clamp(-8, 7) * step - x).square().sum())
    assert errors["mse"] <= min(errors.values()) * 1.02
    assert errors["mse"] < errors["min-max"]


def test_entropy_keeps_a_uniform_distribution_whole():
    found = histogram_of(torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    assert activation_range(found, "entropy").high > 0.9


def test_calibration_refuses_unknown_methods_zeros_and_nothing():
    with pytest.raises(InputError, match='Did you mean "entropy"'):
        activation_range(histogram_of(random(10)), "entrop")
    with pytest.raises(InputError, match="All activations are zero"):
        histogram_of(torch.zeros(4))
    with pytest.raises(InputError, match="No activations"):
        histogram_of(torch.zeros(0))
    with pytest.raises(InputError, match="NaN"):
        histogram_of(torch.tensor([torch.nan]))


@pytest.mark.parametrize("name", ["W8A8", "W4A4", "W8A8-static", "FP8", "FP8-channel", "FP8-block", "MXFP4", "NVFP4"])
def test_activations_are_rounded_as_the_scheme_says(name):
    x = random(7, 256)
    format_ = parse_scheme(name).activations
    rounded = quantize_activations(x, format_)
    least = 30 if format_.number == "e4m3" else 6 * format_.bits - 12
    assert error_metrics(x, rounded).snr_db > least
    assert torch.equal(quantize_activations(x[:3], parse_scheme("BF16").activations), x[:3])


def test_a_calibrated_range_clips_and_belongs_to_static_schemes():
    x = torch.tensor([[0.5, 3.0, -3.0]])
    rounded = quantize_activations(x, parse_scheme("W8A8-static").activations, ActivationRange(-1.0, 1.0))
    assert rounded.abs().max() <= 1.01
    with pytest.raises(InputError, match="per token or group"):
        quantize_activations(x, parse_scheme("W8A8").activations, ActivationRange(-1.0, 1.0))
