import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.schemes.catalog import SCHEMES, parse_scheme
from codesign.schemes.scheme import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, Scheme

GROUPS = st.sampled_from(["", *(f"-g{2**power}" for power in range(4, 11))])


@st.composite
def integer_names(draw: st.DrawFn) -> str:
    bits, activation_bits = draw(st.integers(1, 8)), draw(st.sampled_from([16, 8, 4]))
    bits = min(bits, activation_bits)
    return f"W{bits}A{activation_bits}{draw(GROUPS)}{draw(st.sampled_from(['', '-asym']))}"


def assert_round_trip(name: str) -> None:
    scheme = parse_scheme(name)
    assert str(scheme) == name
    assert parse_scheme(str(scheme)) == scheme
    assert parse_scheme(name.lower()) == scheme
    assert parse_scheme(f" {name.upper().replace('-', '_')} ") == scheme


@pytest.mark.parametrize("name", SCHEMES)
def test_catalog_names_round_trip(name: str) -> None:
    assert_round_trip(name)
    assert SCHEMES[name].name == name


@given(integer_names())
def test_integer_names_round_trip(name: str) -> None:
    assert_round_trip(name)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_described(name: str) -> None:
    scheme = SCHEMES[name]
    assert scheme.description
    assert scheme.family
    assert not set(scheme.math_dtypes) & set(scheme.fallback_math_dtypes)


def test_descriptions_are_distinct() -> None:
    assert len({scheme.description for scheme in SCHEMES.values()}) == len(SCHEMES)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("bfloat16", "BF16"),
        ("float16", "FP16"),
        ("half", "FP16"),
        ("int8_wo", "W8A16"),
        ("int4_wo", "W4A16-g128"),
        ("sq", "W8A8"),
        ("fp8", "FP8"),
        ("fp8_block", "FP8-block"),
        ("w4a16_mxfp4", "MXFP4-A16"),
        ("nvfp4", "NVFP4"),
        ("W4A16-G128", "W4A16-g128"),
        ("w4a16_g128", "W4A16-g128"),
        ("q4_k", "Q4_K"),
        ("iq4-xs", "IQ4_XS"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert parse_scheme(alias).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q4_k_m", '"Q4_K"'),
        ("Q3_K_XL", '"Q3_K"'),
        ("iq3_m", '"IQ3_S"'),
        ("w4a17", 'mean "W4A'),
        ("NVFP5", 'mean "NVFP4"'),
        ("w8a4", "4-bit activations"),
        ("W4A16-g100", "power of two between 16 and 1024"),
        ("W4A16-g2048", "power of two"),
        ("W4A16-static", "W8A8 only"),
        ("W8A8-g128-static", "does not combine"),
        ("W8A8-asym-tensor", "does not combine"),
        ("", "Unknown scheme"),
        ("W0A16", "Unknown scheme"),
        ("W9A16", "Unknown scheme"),
        ("W4A16-g128\n", None),
        ("x" * 100_000, "too long"),
    ],
)
def test_what_is_not_a_scheme_is_a_sentence(text: str, message: str | None) -> None:
    if message is None:
        assert parse_scheme(text).name == "W4A16-g128"
        return
    with pytest.raises(InputError, match=message) as caught:
        parse_scheme(text)
    assert len(str(caught.value)) < 300
    assert str(caught.value).endswith(".")


@given(st.text(max_size=80))
def test_any_text_parses_or_is_an_input_error(text: str) -> None:
    try:
        scheme = parse_scheme(text)
    except InputError:
        return
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("name", "weights", "activations", "dynamic", "math"),
    [
        ("W4A16-g128", PerGroup(128), None, True, ("bf16", "fp16")),
        ("W4A16", PerChannel(), None, True, ("bf16", "fp16")),
        ("W8A8", PerChannel(), PerToken(), True, ("int8",)),
        ("W8A8-static", PerChannel(), PerTensor(), False, ("int8",)),
        ("W8A8-tensor", PerTensor(), PerTensor(), False, ("int8",)),
        ("W4A8-g128", PerGroup(128), PerToken(), True, ("int8",)),
        ("W4A4", PerChannel(), PerToken(), True, ("int4",)),
        ("FP8-channel", PerChannel(), PerToken(), True, ("fp8",)),
        ("FP8-block", PerBlock(128, 128), PerGroup(128), True, ("fp8",)),
        ("NVFP4", PerGroup(16), PerGroup(16), True, ("fp4",)),
        ("MXFP4-A16", PerGroup(32), None, True, ("bf16", "fp16")),
    ],
)
def test_granularity_and_math(
    name: str, weights: object, activations: object, dynamic: bool, math: tuple[str, ...]
) -> None:
    scheme = parse_scheme(name)
    assert scheme.weights.granularity == weights
    assert scheme.activations.granularity == activations
    assert scheme.activations.dynamic is dynamic
    assert scheme.math_dtypes == math


def test_weight_only_and_quantized() -> None:
    assert not SCHEMES["BF16"].quantized
    assert SCHEMES["NF4"].weight_only
    assert not SCHEMES["W8A8"].weight_only
    assert SCHEMES["W8A8"].weights.symmetric
    assert not SCHEMES["Q4_K"].weights.symmetric


def test_schemes_are_values() -> None:
    first: Scheme = parse_scheme("W5A16-g512")
    assert hash(first) == hash(parse_scheme("w5a16_g512"))
