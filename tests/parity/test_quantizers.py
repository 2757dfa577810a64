"""Our quantizers against the packages that define the formats, and formats against their published layouts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize.gguf import ENCODED_TYPES, quantize_gguf
from codesign.quantize.pack import pack_words, unpack_words
from codesign.quantize.pack_compressed import compressed_format, from_compressed, to_compressed
from codesign.quantize.pack_gptq import from_awq, from_gptq, to_awq, to_gptq
from codesign.quantize.round import QuantizedWeight, quantize_weight
from codesign.schemes.catalog import SCHEMES, parse_scheme
from codesign.schemes.storage import weight_bytes

torch = pytest.importorskip("torch", reason="quantizers need torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages, about themselves


def random(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(first: QuantizedWeight, second: QuantizedWeight) -> bool:
    return torch.equal(first.codes, second.codes) and torch.equal(first.dequantize(), second.dequantize())


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 99), seed=st.integers(0, 999))
def test_words_give_back_what_was_packed(bits, rows, columns, seed):
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    words = pack_words(codes, bits)
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack_words(words, bits, columns), codes)
    as_number = sum(int(code) << (place * bits) for place, code in enumerate(codes[0]))
    assert as_number == sum((int(word) & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words[0]))


COMPRESSED = (
    "W4A16-g128", "W4A16-g32-asym", "W4A16", "W3A16-g64", "W3A16-g32-asym", "W2A16-g64", "W8A16", "W8A16-g128",
    "W5A16-g32-asym", "W8A8", "W8A8-tensor", "W4A8-g128", "FP8", "FP8-channel", "FP8-block", "NVFP4", "NVFP4-A16",
    "MXFP4", "MXFP8",
)  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_round_trip_and_take_the_bytes_that_storage_counts(name):
    scheme = parse_scheme(name)
    rounded = quantize_weight(random(66, 256), scheme)
    tensors = to_compressed(rounded)
    assert same(from_compressed(tensors, scheme), rounded)
    assert sum(t.nbytes for n, t in tensors.items() if n != "weight_shape") == weight_bytes(scheme, 66, 256)


def arguments(name: str):
    """Return compressed-tensors' own description of a scheme's weights."""
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="the oracle of its format")
    scheme = parse_scheme(name)
    weights = scheme.weights
    strategy = {"PerTensor": "tensor", "PerChannel": "channel", "PerGroup": "group", "PerBlock": "block"}
    kind = strategy[type(weights.granularity).__name__]
    more = {}
    if weights.tensor_scale_bits:
        kind, more = "tensor_group", {"scale_dtype": torch.float8_e4m3fn, "zp_dtype": torch.float8_e4m3fn}
    elif name.startswith("MX"):
        more = {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
    if kind in ("group", "tensor_group"):
        more["group_size"] = weights.granularity.size
    if kind == "block":
        more["block_structure"] = [weights.granularity.rows, weights.granularity.columns]
    number = "int" if weights.number.startswith("int") else "float"
    return quantization.QuantizationArgs(
        num_bits=int(weights.bits), type=number, symmetric=weights.symmetric, strategy=kind, **more
    )


def reader(name: str):
    compressors = pytest.importorskip("compressed_tensors.compressors", reason="the oracle of its format")
    return compressors.BaseCompressor.get_value_from_registry(compressed_format(parse_scheme(name)))


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_reads_our_tensors_as_the_same_values(name):
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="the oracle of its format")
    rounded = quantize_weight(random(64, 256).bfloat16(), parse_scheme(name))
    described = quantization.QuantizationScheme(targets=["Linear"], weights=arguments(name))
    read = reader(name).decompress(dict(to_compressed(rounded)), described)["weight"]
    exact = rounded.dequantize()
    # Their product is rounded to the type of the scales, E4M3 scales being divided in bfloat16.
    tolerance = 2.0**-6 if "FP" in name else 2.0**-8
    assert torch.allclose(read.float(), exact, rtol=tolerance if read.dtype != torch.float32 else 1e-6, atol=1e-30)


@pytest.mark.parametrize("name", [name for name in COMPRESSED if not name.startswith(("NVFP4", "MXFP8"))])
def test_compressed_tensors_chooses_the_same_scales_and_codes(name):
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers", reason="the oracle of its format")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward", reason="the oracle")
    scheme = parse_scheme(name)
    w = random(64, 256)
    rounded, args = quantize_weight(w, scheme), arguments(name)
    tiles = rounded.tile
    cut = w.reshape(64 // tiles.rows if 64 % tiles.rows == 0 else 1, -1, 256 // tiles.columns, tiles.columns)
    scales, zeros = helpers.calculate_qparams(cut.amin(dim=(1, 3)), cut.amax(dim=(1, 3)), args)
    ours = rounded.scales.effective()
    assert torch.allclose(scales.float(), ours, rtol=2.0**-10)
    if not scheme.weights.symmetric:
        half = 2 ** (int(scheme.weights.bits) - 1)
        assert (zeros.int() + half - rounded.zero_points.int()).abs().max() <= 1
        zeros = rounded.zero_points.int() - half
    shape = ours.reshape(-1) if ours.numel() == 1 else ours
    theirs = forward.fake_quantize(w, shape, None if scheme.weights.symmetric else zeros, args)
    assert torch.allclose(theirs, rounded.dequantize(), rtol=1e-6, atol=1e-7)


def test_nvfp4_scales_are_those_of_compressed_tensors():
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers", reason="the oracle of its format")
    w = random(8, 64)
    rounded = quantize_weight(w, parse_scheme("NVFP4"))
    whole = helpers.generate_gparam(w.min(), w.max())
    assert torch.allclose(rounded.scales.above.divisor, whole, rtol=1e-6)
    groups = w.view(8, 4, 16)
    scales, _ = helpers.calculate_qparams(groups.amin(2), groups.amax(2), arguments("NVFP4"), global_scale=whole)
    assert torch.equal(scales.float(), rounded.scales.stored.float())


@pytest.mark.parametrize("name", ["W4A16-g128", "W3A16-g32-asym"])
def test_words_are_those_of_compressed_tensors(name):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers", reason="the oracle")
    scheme = parse_scheme(name)
    bits = int(scheme.weights.bits)
    rounded = quantize_weight(random(10, 256), scheme)
    tensors = to_compressed(rounded)
    signed = rounded.codes if scheme.weights.symmetric else (rounded.codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(tensors["weight_packed"], helpers.pack_to_int32(signed, bits))
    if not scheme.weights.symmetric:
        points = (rounded.zero_points.int() - 2 ** (bits - 1)).to(torch.int8)
        assert torch.equal(tensors["weight_zero_point"], helpers.pack_to_int32(points, bits, packed_dim=0))


@pytest.mark.parametrize(
    ("name", "message"),
    [("NF4", "does not store NF4"), ("Q4_K", "does not store"), ("MXFP6", "E2M3"), ("W4A16-g64-asym16", "floats"),
     ("W1A16-g128", "one bit"), ("BF16", "does not store")],
)  # fmt: skip
def test_compressed_tensors_refuses_with_the_reason(name, message):
    with pytest.raises(InputError, match=message):
        compressed_format(parse_scheme(name))


def test_compressed_tensors_needs_whole_groups():
    with pytest.raises(InputError, match="128 does not divide 576"):
        to_compressed(quantize_weight(random(8, 576), parse_scheme("W4A16-g128")))


GPTQ = ("W4A16-g128", "W4A16-g64-asym", "W4A16", "W3A16-g32", "W3A16-g64-asym", "W2A16-g64", "W8A16-g128")


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(GPTQ), version=st.sampled_from([1, 2]), n=st.integers(1, 40), k=st.integers(1, 300),
       seed=st.integers(0, 99))  # fmt: skip
def test_gptq_round_trips_ragged_groups_included(name, version, n, k, seed):
    scheme = parse_scheme(name)
    rounded = quantize_weight(random(n, k, seed=seed), scheme)
    if version == 1 and rounded.zero_points is not None and bool((rounded.zero_points == 0).any()):
        with pytest.raises(InputError, match="has no 0"):
            to_gptq(rounded, version=version)
        return
    tensors = to_gptq(rounded, version=version)
    assert same(from_gptq(tensors, scheme, version=version), rounded)


def test_gptq_layout_by_hand():
    scheme = parse_scheme("W4A16-g16-asym")
    rounded = quantize_weight(random(8, 32), scheme)
    tensors = to_gptq(rounded, version=1)
    assert tensors["qweight"].shape == (4, 8)
    assert tensors["qzeros"].shape == (2, 1)
    assert tensors["scales"].shape == (2, 8)
    assert tensors["g_idx"].tolist() == [0] * 16 + [1] * 16
    word = int(tensors["qweight"][1, 5]) & 0xFFFFFFFF
    assert [(word >> (4 * place)) & 15 for place in range(8)] == rounded.codes[5, 8:16].tolist()
    zeros = int(tensors["qzeros"][1, 0]) & 0xFFFFFFFF
    assert [(zeros >> (4 * place)) & 15 for place in range(8)] == (rounded.zero_points[:, 1] - 1).tolist()


def test_gptq_versions_differ_by_one_in_every_zero_point():
    rounded = quantize_weight(random(8, 64), parse_scheme("W4A16-g64"))
    words = [int(to_gptq(rounded, version=version)["qzeros"][0, 0]) & 0xFFFFFFFF for version in (1, 2)]
    assert words == [0x77777777, 0x88888888]


def test_gptq_keeps_groups_in_any_order():
    scheme = parse_scheme("W4A16-g16")
    rounded = quantize_weight(random(8, 64), scheme)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = QuantizedWeight(rounded.codes[:, order].contiguous(), rounded.scales, scheme, group_of=order // 16)
    read = from_gptq(to_gptq(shuffled, version=2), scheme, version=2)
    assert torch.equal(read.group_of, order // 16)
    assert same(read, shuffled)


@pytest.mark.parametrize("name", ["W4A16-g128", "W4A16-g64-asym", "W4A16"])
def test_awq_round_trips_and_interleaves_as_published(name):
    scheme = parse_scheme(name)
    rounded = quantize_weight(random(16, 256), scheme)
    tensors = to_awq(rounded)
    assert tensors["qweight"].shape == (256, 2)
    assert same(from_awq(tensors, scheme), rounded)
    word = int(tensors["qweight"][3, 1]) & 0xFFFFFFFF
    stored = [(word >> (4 * place)) & 15 for place in range(8)]
    shift = 8 if scheme.weights.symmetric else 0
    # planning_notes, section 6: nibble i holds column [0, 2, 4, 6, 1, 3, 5, 7][i]
    assert stored == [int(rounded.codes[8 + column, 3]) + shift for column in (0, 2, 4, 6, 1, 3, 5, 7)]


def test_awq_and_gptq_refuse_what_they_cannot_store():
    with pytest.raises(InputError, match="AWQ stores integers of 4 bits"):
        to_awq(quantize_weight(random(8, 64), parse_scheme("W8A16")))
    with pytest.raises(InputError, match="words of 8 outputs"):
        to_awq(quantize_weight(random(9, 64), parse_scheme("W4A16-g64")))
    with pytest.raises(InputError, match="GPTQ stores integers of 2, 3, 4, 8 bits"):
        to_gptq(quantize_weight(random(8, 64), parse_scheme("NF4")), version=2)
    tiny = quantize_weight(random(8, 64).bfloat16() * 1e-5, parse_scheme("W4A16-g64"))
    with pytest.raises(InputError, match=r"do not fit torch.float16"):
        to_gptq(tiny, version=2)


BLOCKS = {
    "normal": random(40, 512) * 0.02,
    "positive": random(40, 512).abs(),
    "outliers": random(40, 512) * (random(40, 512, seed=1) * 2).exp(),
    "zeros": torch.zeros(4, 512),
    "constant": torch.full((4, 512), -0.3),
}


@pytest.mark.parametrize("name", ENCODED_TYPES)
@pytest.mark.parametrize("kind", BLOCKS)
def test_gguf_reads_our_blocks_bit_by_bit(name, kind):
    gguf = pytest.importorskip("gguf", reason="the oracle of its format")
    scheme, w = parse_scheme(name), BLOCKS[kind]
    ours = quantize_gguf(w, scheme)
    type_ = gguf.GGMLQuantizationType[name.removeprefix("GGML-")]
    assert np.array_equal(gguf.dequantize(ours.rows.numpy(), type_), ours.dequantize().numpy())
    assert ours.rows.numel() == weight_bytes(scheme, *w.shape)


# Noise over signal of 256-value blocks of normal weights. The bound for rounding to the nearest of 2^b even steps over
# a group's range is what the search has to beat.
@pytest.mark.parametrize(
    ("name", "plain", "gain"),
    [("Q4_K", "W4A16-g32-asym", 0.95), ("Q5_K", "W5A16-g32-asym", 0.95), ("Q6_K", "W6A16-g16", 1.1)],
)
def test_k_types_lose_no_more_than_plain_groups(name, plain, gain):
    w = random(64, 512)
    error = (quantize_gguf(w, parse_scheme(name)).dequantize() - w).square().sum()
    simple = (quantize_weight(w, parse_scheme(plain)).dequantize() - w).square().sum()
    assert error < gain * simple


def test_importance_moves_the_error_to_columns_that_matter_less():
    w, scheme = random(64, 256), parse_scheme("Q4_K")
    importance = torch.ones(256)
    importance[::4] = 100
    plain, weighed = (quantize_gguf(w, scheme, given) for given in (None, importance))
    error = [(rounded.dequantize() - w).square()[:, ::4].sum() for rounded in (plain, weighed)]
    assert error[1] < 0.8 * error[0]


def test_gguf_refuses_rows_that_blocks_do_not_fill_and_types_without_encoder():
    with pytest.raises(InputError, match="does not divide 576"):
        quantize_gguf(random(2, 576), parse_scheme("Q4_K"))
    with pytest.raises(InputError, match="no encoder"):
        quantize_gguf(random(2, 512), parse_scheme("IQ1_S"))


@pytest.mark.parametrize(
    ("name", "kind", "nested"), [("NF4-single", "nf4", False), ("BNB-FP4-single", "fp4", False), ("NF4", "nf4", True)]
)
@pytest.mark.parametrize("shape", [(64, 128), (33, 192), (300, 128)])
def test_bitsandbytes_rounds_to_the_same_values(name, kind, nested, shape):
    functional = pytest.importorskip("bitsandbytes.functional", reason="the oracle of its format")
    w = random(*shape)
    packed, state = functional.quantize_4bit(w, blocksize=64, quant_type=kind, compress_statistics=nested)
    theirs = functional.dequantize_4bit(packed, state)
    rounded = quantize_weight(w, parse_scheme(name))
    # Its kernels multiply with the inverse of the scale: a value at the middle of two levels may go the other way.
    ours = rounded.dequantize()
    close = torch.isclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert close.float().mean() > (0.98 if nested else 0.9999)
    if nested:
        assert (rounded.scales.stored.view(-1) != state.absmax).float().mean() < 0.02
        assert torch.allclose(rounded.scales.above.absmax, state.state2.absmax, rtol=1e-6)
        assert torch.allclose(rounded.scales.above.offset, state.offset, rtol=1e-6)
        # It chooses codes before the scales are rounded, we do after: where they differ, ours are nearer.
        assert (ours - w)[~close].abs().mean() < (theirs - w)[~close].abs().mean()
    codes = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), dim=1).view(-1)[: w.numel()].view(shape)
    assert (codes == rounded.codes).float().mean() > (0.98 if nested else 0.9999)


@pytest.mark.parametrize("name", ["W4A16-g64", "W8A16", "W4A16-g128-asym"])
def test_torchao_chooses_the_same_codes(name):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives", reason="a second opinion")
    scheme, w = parse_scheme(name), random(16, 256)
    rounded = quantize_weight(w, scheme)
    block, bits = (1, rounded.tile.columns), int(scheme.weights.bits)
    symmetric = scheme.weights.symmetric
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    mapping = primitives.MappingType.SYMMETRIC if symmetric else primitives.MappingType.ASYMMETRIC
    target = torch.int8 if symmetric else torch.uint8
    scales, zeros = primitives.choose_qparams_affine(w, mapping, block, target, low, high, scale_dtype=torch.float32)
    assert torch.allclose(scales.view(16, -1), rounded.scales.effective(), rtol=2.0**-10)
    codes = primitives.quantize_affine(w, block, rounded.scales.effective(), zeros.view(16, -1), target, low, high)
    if not symmetric:
        assert torch.equal(zeros.view(16, -1).int(), rounded.zero_points.int())
    assert (codes != rounded.codes).float().mean() < 1e-3


def test_every_scheme_of_the_catalog_is_rounded_here_or_named_as_missing():
    missing = []
    for scheme in SCHEMES.values():
        try:
            (quantize_gguf if scheme.family == "gguf" else quantize_weight)(random(2, 256), scheme)
        except InputError:
            missing.append(scheme.name)
    assert set(missing) == {"IQ1_M", "IQ1_S"}
