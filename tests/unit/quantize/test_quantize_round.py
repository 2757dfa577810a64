import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize.numbers import FLOATS, SmallFloat, codec_of
from codesign.quantize.round import QuantizedWeight, dead_channels, quantize_weight
from codesign.quantize.scales import Scales, least_error_scales
from codesign.quantize.tiles import in_tiles, over_tiles, stored_matrix, tile_of
from codesign.schemes.catalog import SCHEMES, parse_scheme
from codesign.schemes.storage import scale_count

torch = pytest.importorskip("torch", reason="rounding needs torch")

ROUNDED = [scheme for scheme in SCHEMES.values() if scheme.family != "gguf"]
WITH_SCALES = [scheme for scheme in ROUNDED if scheme.quantized]


def weights(n: int, k: int, seed: int = 0) -> "torch.Tensor":
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator)


@pytest.mark.parametrize("scheme", WITH_SCALES, ids=str)
@pytest.mark.parametrize("shape", [(3, 64), (130, 200), (1, 1)])
def test_there_is_one_scale_where_the_scheme_counts_one(scheme, shape):
    rounded = quantize_weight(weights(*shape), scheme)
    assert rounded.shape == shape
    assert rounded.scales.stored.numel() == scale_count(scheme, *shape)
    assert rounded.dequantize().shape == shape


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(WITH_SCALES),
    n=st.integers(1, 20),
    k=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_what_was_rounded_rounds_to_itself_with_the_same_scales(scheme, n, k, seed, dtype):
    w = (weights(n, k, seed) * 0.05).to(getattr(torch, dtype))
    before = w.clone()
    once = quantize_weight(w, scheme)
    twice = quantize_weight(once.dequantize(), scheme, scales=once.scales)
    assert torch.equal(once.dequantize(), twice.dequantize())
    assert torch.equal(w, before)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["W8A16-g32", "W4A16-g64", "W3A16", "W2A16-g128", "W8A8-tensor", "W4A16-g128-asym"]),
    n=st.integers(1, 12),
    k=st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_no_integer_is_further_away_than_half_a_step(name, n, k, seed):
    scheme = parse_scheme(name)
    w = weights(n, k, seed)
    rounded = quantize_weight(w, scheme)
    step = over_tiles(rounded.scales.effective())
    error = (in_tiles(rounded.dequantize(), rounded.tile) - in_tiles(w, rounded.tile)).abs()
    # The scale is rounded too, by 2^-11 of itself, and the codes at the ends feel it times their distance from zero.
    slack = 0.5 + 2 ** int(scheme.weights.bits) * 2.0**-11
    if scheme.weights.symmetric:
        assert bool((error <= step * (slack + 1e-6)).all())
    else:
        assert bool((error <= step * (slack + 0.5 + 1e-6)).all())


@pytest.mark.parametrize("scheme", WITH_SCALES, ids=str)
def test_every_value_gets_the_nearest_code(scheme):
    w = weights(4, 128)
    rounded = quantize_weight(w, scheme)
    codec = codec_of(scheme.weights)
    tiles = in_tiles(stored_matrix(w, scheme.weights), rounded.tile)
    zeros = None if rounded.zero_points is None else over_tiles(rounded.zero_points)
    factors = over_tiles(rounded.scales.effective())
    bits = int(scheme.weights.bits)
    signed = rounded.codes.dtype == torch.int8
    codes = range(-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else range(2**bits)
    every = torch.stack(
        [codec.decode(torch.full(tiles.shape, code, dtype=rounded.codes.dtype), zeros) * factors for code in codes]
    )
    if scheme.weights.number == "e4m3":
        every = every[[code for code in codes if code & 127 != 127]]
    best = (every - tiles).abs().amin(dim=0)
    found = (in_tiles(stored_matrix(rounded.dequantize(), scheme.weights), rounded.tile) - tiles).abs()
    assert torch.allclose(found, best, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scheme", WITH_SCALES, ids=str)
def test_codes_do_not_depend_on_how_many_rows_are_rounded_at_a_time(scheme, monkeypatch):
    w = weights(300, 160) * torch.arange(1, 301)[:, None]
    whole = quantize_weight(w, scheme)
    monkeypatch.setattr("codesign.quantize.round._CHUNK_VALUES", 1000)
    parts = quantize_weight(w, scheme)
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.dequantize(), whole.dequantize())


def test_ties_go_to_even_codes():
    scheme, scales = parse_scheme("W8A16"), Scales(torch.ones(1, 1))
    values = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 127.5, -128.5]])
    assert quantize_weight(values, scheme, scales=scales).codes.tolist() == [[0, 2, 2, 0, -2, 127, -128]]


E4M3 = SmallFloat(4, 3, 448.0)


@pytest.mark.parametrize(("codec", "bits"), [(FLOATS["e2m1"], 4), (FLOATS["e3m2"], 6), (E4M3, 8)])
def test_small_floats_keep_every_value_and_split_at_the_middles(codec, bits):
    values = torch.tensor([value for value in codec.magnitudes if value <= codec.largest])
    codes = torch.arange(len(values), dtype=torch.uint8)
    assert torch.equal(codec.encode(values, None), codes)
    assert torch.equal(codec.encode(-values, None), codes | 2 ** (bits - 1))
    middles = (values[1:] + values[:-1]) / 2
    even = torch.where(codes[:-1] % 2 == 0, codes[:-1], codes[1:])
    assert torch.equal(codec.encode(middles, None), even)
    above = torch.nextafter(middles, torch.tensor(torch.inf))
    assert torch.equal(codec.encode(above, None), codes[1:])
    assert codec.encode(torch.tensor([1e30]), None).item() == codes[-1]


def test_e2m1_has_the_values_of_the_format():
    # OCP Microscaling Formats v1.0, table 5
    assert FLOATS["e2m1"].magnitudes == (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def test_the_e4m3_of_torch_agrees_with_the_format():
    values = torch.cat((weights(64, 64).reshape(-1) * 100, weights(64, 64).reshape(-1) * 1e-3))
    codes = FLOATS["e4m3"].encode(values.clone(), None)
    assert torch.equal(E4M3.encode(values, None), codes)
    assert torch.equal(E4M3.decode(codes, None), FLOATS["e4m3"].decode(codes, None))


def test_a_ragged_group_has_a_scale_of_its_own():
    scheme = parse_scheme("W4A16-g128")
    w = weights(5, 576)
    rounded = quantize_weight(w, scheme)
    assert rounded.scales.stored.shape == (5, 5)
    tail = quantize_weight(w[:, 512:], parse_scheme("W4A16"))
    assert torch.equal(rounded.codes[:, 512:], tail.codes)
    assert torch.equal(rounded.scales.stored[:, 4:], tail.scales.stored)


def test_scales_have_the_type_that_is_stored():
    w, scheme = weights(2, 128), parse_scheme("W4A16-g128")
    assert quantize_weight(w, scheme).scales.stored.dtype == torch.float16
    assert quantize_weight(w.bfloat16(), scheme).scales.stored.dtype == torch.bfloat16
    assert quantize_weight(w.bfloat16(), parse_scheme("W8A8")).scales.stored.dtype == torch.float32


def test_a_power_of_two_scale_saturates_by_less_than_half_a_step():
    scheme = parse_scheme("MXFP4")
    exponents = {}
    for largest in (4.0, 6.0, 6.9, 7.0, 7.9, 8.0):
        w = torch.zeros(1, 32)
        w[0, 0] = largest
        exponents[largest] = quantize_weight(w, scheme).scales.stored.item() - 127
    assert exponents == {4.0: 0, 6.0: 0, 6.9: 0, 7.0: 1, 7.9: 1, 8.0: 1}


def test_zeros_stay_zeros():
    for scheme in WITH_SCALES:
        if scheme.weights.bits > 1:
            assert not quantize_weight(torch.zeros(3, 200), scheme).dequantize().any(), scheme


@pytest.mark.parametrize("name", ["W2A16-g64", "W4A16-g32", "W4A16-g64-asym", "MXFP4", "FP8-channel", "NVFP4-A16"])
def test_least_error_scales_beat_the_extremes_in_every_tile(name):
    scheme = parse_scheme(name)
    w = weights(6, 192)
    tile = tile_of(scheme.weights, *w.shape)
    plain = quantize_weight(w, scheme)
    searched = quantize_weight(w, scheme, scales=least_error_scales(w, scheme.weights, tile))

    def errors(rounded: QuantizedWeight) -> "torch.Tensor":
        return in_tiles((rounded.dequantize() - w).square(), tile).sum(dim=(1, 3))

    assert bool((errors(searched) <= errors(plain) * (1 + 1e-6)).all())
    assert errors(searched).sum() < errors(plain).sum()


@settings(max_examples=20, deadline=None)
@example(values=[0.0] * 14 + [1.0, 2.0], bits=3)
@example(values=[0.0] * 14 + [1.0, 1.5], bits=2)
@given(values=st.lists(st.floats(-4, 4, width=16), min_size=16, max_size=16), bits=st.sampled_from([2, 3]))
def test_the_searched_scale_is_close_to_the_best_of_all_scales(values, bits):
    scheme = parse_scheme(f"W{bits}A16-g16")
    w = torch.tensor([values])
    rounded = quantize_weight(w, scheme, scales=least_error_scales(w, scheme.weights, tile_of(scheme.weights, 1, 16)))
    half = 2 ** (bits - 1)
    best = min(
        float(((w / scale).round().clamp(-half, half - 1) * scale - w).square().sum())
        for scale in (float(w.abs().max()) / half * step / 400 + 1e-9 for step in range(1, 900))
    )
    error = float((rounded.dequantize() - w).square().sum())
    # Steps of a fortieth of the range; below half of the range no scale is tried.
    assert error <= best * 1.25 + 1e-3 * float(w.square().sum())


def test_brute_force_over_all_half_precision_scales_of_a_tiny_group():
    scheme = parse_scheme("W2A16-g16")
    w = torch.tensor([[-1.0, 0.9, -0.35, 0.4] + [0.0] * 12])
    halves = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    near = halves[(halves > 0.1) & (halves < 1.5)][:, None]
    errors = ((w / near).round().clamp(-2, 1) * near - w).square().sum(dim=1)
    chosen = quantize_weight(w, scheme, scales=least_error_scales(w, scheme.weights, tile_of(scheme.weights, 1, 16)))
    error = float((chosen.dequantize() - w).square().sum())
    assert float(errors.min()) <= error <= float(errors.min()) * 1.05


def test_nan_and_infinity_are_named_with_their_rows():
    w = weights(9, 64)
    w[4, 3], w[7, 0] = torch.nan, torch.inf
    for scheme in ROUNDED:
        with pytest.raises(InputError, match=r"1 NaN and 1 infinite values, in 2 of 9 rows \(4, 7\)"):
            quantize_weight(w, scheme)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_value_anywhere_is_found_by_its_row(bad):
    w = weights(3000, 128)
    w[2999, 127] = bad
    for scheme in ROUNDED:
        with pytest.raises(InputError, match=r"in 1 of 3000 rows \(2999\)"):
            quantize_weight(w, scheme)


def test_given_scales_do_not_hide_nan():
    w, scheme = weights(2, 64), parse_scheme("W8A16")
    scales = quantize_weight(w, scheme).scales
    w[1, 1] = torch.nan
    with pytest.raises(InputError, match="1 NaN"):
        quantize_weight(w, scheme, scales=scales)


def test_values_that_fp16_cannot_hold_are_refused():
    with pytest.raises(InputError, match="1 infinite"):
        quantize_weight(torch.tensor([[1e6]]), parse_scheme("FP16"))
    with pytest.raises(InputError, match=r"does not fit torch\.float16"):
        quantize_weight(torch.tensor([[1e7] * 16]), parse_scheme("W4A16"))


@pytest.mark.parametrize("w", [torch.zeros(0, 4), torch.zeros(4), torch.zeros(2, 2, dtype=torch.int8)])
def test_other_tensors_are_refused(w):
    with pytest.raises(InputError, match=r"matrix \[n, k\]"):
        quantize_weight(w, parse_scheme("W8A16"))


def test_gguf_types_are_sent_to_their_own_encoder():
    with pytest.raises(InputError, match=r"codesign\.quantize\.gguf"):
        quantize_weight(weights(1, 256), parse_scheme("Q4_K"))


def test_dead_channels_are_found():
    w = weights(4, 6)
    w[2], w[:, 5] = 0, 0
    found = dead_channels(w)
    assert found.rows == (2,)
    assert found.columns == (5,)


def test_columns_of_any_order_take_their_group_from_the_index():
    scheme = parse_scheme("W4A16-g16")
    w = weights(3, 32)
    rounded = quantize_weight(w, scheme)
    order = torch.tensor(list(itertools.chain.from_iterable((i, i + 16) for i in range(16))))
    shuffled = QuantizedWeight(rounded.codes[:, order], rounded.scales, scheme, group_of=order // 16)
    assert torch.equal(shuffled.dequantize(), rounded.dequantize()[:, order])
