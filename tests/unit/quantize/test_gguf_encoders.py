"""Our encoders of GGUF types: the gguf package reads the same values, and what the searches promise."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize.gguf import ENCODED_TYPES, encoder_problem, quantize_gguf
from codesign.schemes.catalog import SCHEMES, parse_scheme
from codesign.schemes.storage import weight_bytes

torch = pytest.importorskip("torch", reason="the encoders need torch")
gguf = pytest.importorskip("gguf", reason="it is the oracle, and carries the grids")

# The encoders of gguf 0.19 in Python, which do not search: without importance our bytes are theirs.
BYTE_BY_BYTE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "GGML-MXFP4", "TQ1_0", "TQ2_0")
SEARCHED = tuple(name for name in ENCODED_TYPES if not name.startswith(("GGML", "TQ", "Q8")))


def random(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoded(w: "torch.Tensor", name: str, importance: "torch.Tensor | None" = None) -> "torch.Tensor":
    return quantize_gguf(w, parse_scheme(name), importance).dequantize()


def relative_error(w: "torch.Tensor", name: str) -> float:
    return float((decoded(w, name) - w).square().sum() / w.square().sum())


def type_of(name: str) -> "gguf.GGMLQuantizationType":
    return gguf.GGMLQuantizationType[name.removeprefix("GGML-")]


MATRICES = {
    "normal": random(12, 512) * 0.02,
    "positive": random(12, 512).abs(),
    "outliers": random(12, 512) * (random(12, 512, seed=1) * 2).exp(),
    "ties": random(12, 512).sign() * 0.5,
    "zeros": torch.zeros(4, 512),
    "one value": torch.zeros(2, 512).index_put((torch.tensor([0, 1]), torch.tensor([3, 300])), torch.tensor([-2.0, 5])),
    "constant": torch.full((4, 512), -0.3),
    "tiny": random(4, 512) * 1e-9,
    "large": random(4, 512) * 1e4,
}


@pytest.mark.parametrize("name", ENCODED_TYPES)
@pytest.mark.parametrize("kind", MATRICES)
def test_the_package_reads_the_same_values_from_our_bytes(name, kind):
    w = MATRICES[kind]
    ours = quantize_gguf(w, parse_scheme(name))
    values = ours.dequantize().numpy()
    assert np.isfinite(values).all()
    assert np.array_equal(gguf.dequantize(ours.rows.numpy(), type_of(name)), values)
    assert ours.rows.numel() == weight_bytes(parse_scheme(name), *w.shape)


@pytest.mark.parametrize("name", ENCODED_TYPES)
def test_random_bytes_are_read_as_the_package_reads_them(name):
    block, size = gguf.GGML_QUANT_SIZES[type_of(name)]
    rows = torch.randint(0, 256, (64, size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    ours = quantize_gguf(torch.zeros(64, block), parse_scheme(name))
    read = type(ours)(rows, ours.scheme, (64, block)).dequantize().numpy()
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(rows.numpy(), type_of(name))
    usual = np.isfinite(theirs) & np.isfinite(read)
    assert usual.mean() > 0.8
    assert np.array_equal(theirs[usual], read[usual])


@pytest.mark.parametrize("name", BYTE_BY_BYTE)
@pytest.mark.parametrize("kind", MATRICES)
def test_types_without_a_search_are_equal_byte_by_byte(name, kind):
    ours = quantize_gguf(MATRICES[kind], parse_scheme(name)).rows.numpy()
    assert np.array_equal(gguf.quantize(MATRICES[kind].numpy(), type_of(name)), ours)


@pytest.mark.parametrize("name", [name for name in ENCODED_TYPES if name not in ("Q4_K", "Q5_K", "Q2_K")])
def test_values_that_a_type_holds_come_back(name):
    once = decoded(random(8, 512), name)
    again = decoded(once, name)
    # The scale of 256 values follows from the largest, which rounding may have moved: hardly anything is lost.
    assert float((again - once).square().sum() / once.square().sum()) < (1e-6 if name in BYTE_BY_BYTE else 0.01)


@pytest.mark.parametrize(
    ("name", "low", "high", "size"),
    [("Q2_K", 0, 3, 16), ("Q3_K", -4, 3, 16), ("Q4_K", -7, 8, 32), ("Q5_K", -9, 22, 32), ("Q6_K", -32, 31, 16)],
)
def test_evenly_spaced_values_are_exact_but_for_the_half(name, low, high, size):
    codes = torch.randint(low, high + 1, (64, size), generator=torch.Generator().manual_seed(1))
    codes[:, 0], codes[:, 1] = low, high
    w = codes.float().view(2, -1) * 0.125
    assert float((decoded(w, name) - w).abs().max()) <= 2.0**-10 * float(w.abs().max())


@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS"])
def test_values_on_the_levels_are_exact(name):
    levels = torch.tensor(gguf.quants.IQ4_NL.kvalues, dtype=torch.float32)
    w = levels.repeat(2, 32) * 2.0**-9
    assert torch.equal(decoded(w, name), w)


@pytest.mark.parametrize("name", ENCODED_TYPES)
@settings(max_examples=5, deadline=None)
@given(power=st.integers(-3, 6), seed=st.integers(0, 100))
def test_a_power_of_two_goes_through(name, power, seed):
    w = random(2, 256, seed=seed)
    assert torch.equal(decoded(w * 2.0**power, name), decoded(w, name) * 2.0**power)


@pytest.mark.parametrize("name", ENCODED_TYPES)
def test_blocks_do_not_depend_on_their_neighbours(name):
    w = random(6, 512)
    together = quantize_gguf(w, parse_scheme(name)).rows
    alone = torch.cat([quantize_gguf(row[None], parse_scheme(name)).rows for row in w])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", SEARCHED)
def test_equal_importance_only_matters_where_nothing_is_searched_without_it(name):
    w = random(8, 512)
    plain, equal = decoded(w, name), decoded(w, name, torch.full((512,), 4.0))
    if name in BYTE_BY_BYTE:
        assert (equal - w).square().sum() < (plain - w).square().sum()
    else:
        assert torch.allclose(equal, plain, atol=1e-6)


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_moves_the_error_to_columns_that_matter_less(name):
    w = random(32, 512)
    importance = torch.ones(512)
    importance[::4] = 100
    error = [(decoded(w, name, given) - w).square()[:, ::4].sum() for given in (None, importance)]
    assert error[1] < 0.9 * error[0]


@pytest.mark.parametrize("kind", ["normal", "outliers"])
def test_more_bits_of_a_family_lose_less(kind):
    w = MATRICES[kind]
    families = (
        ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL"),
        ("Q4_0", "Q5_0", "Q8_0"),
        ("Q4_1", "Q5_1"),
    )
    for family in families:
        errors = [relative_error(w, name) for name in family]
        assert all(more >= fewer for more, fewer in itertools.pairwise(errors)), dict(zip(family, errors, strict=True))


# Relative squared errors of this matrix through ggml's quantizers: ggml-quants.c as in llama-cpp-python 0.3.36, without
# importance, which is one for all columns in the two types that ask for it, IQ2_XS and IQ2_XXS.
@pytest.mark.parametrize(("name", "theirs"), [
    ("Q2_K", 0.088885), ("Q3_K", 0.022725), ("Q4_K", 0.0051144), ("Q5_K", 0.0012961), ("Q6_K", 0.00031027),
    ("IQ4_NL", 0.0057578), ("IQ4_XS", 0.005855), ("IQ3_S", 0.027458), ("IQ3_XXS", 0.045066), ("IQ2_S", 0.07007),
    ("IQ2_XS", 0.09005), ("IQ2_XXS", 0.11987),
])  # fmt: skip
def test_normal_weights_lose_no_more_than_with_ggml(name, theirs):
    assert relative_error(random(64, 512), name) < theirs


@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M"])
def test_types_without_encoder_name_the_nearest(name):
    with pytest.raises(InputError, match=r"no encoder here.*Use IQ2_XXS"):
        quantize_gguf(random(2, 512), parse_scheme(name))


def test_ragged_rows_are_refused_with_types_that_fit():
    with pytest.raises(InputError, match=r"blocks of 256, which does not divide 576\. Use Q4_0") as caught:
        quantize_gguf(random(2, 576), parse_scheme("Q4_K"))
    words = str(caught.value).partition("Use")[2].replace(",", " ").replace(".", " ").split()
    named = set(words) & set(ENCODED_TYPES)
    assert named == {name for name in ENCODED_TYPES if encoder_problem(parse_scheme(name), 576) is None}
    assert {"Q8_0", "IQ4_NL", "GGML-NVFP4"} < named
    assert not named & {"Q6_K", "IQ4_XS", "TQ2_0"}


def test_rows_that_no_type_fits_are_refused():
    with pytest.raises(InputError, match="No type fits, as all store at least 32"):
        quantize_gguf(random(2, 100), parse_scheme("Q8_0"))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "IQ3_S"])
def test_scales_beyond_a_half_are_refused(name):
    with pytest.raises(InputError, match="too large for GGUF"):
        quantize_gguf(random(2, 256) * 1e9, parse_scheme(name))


def test_grids_without_the_package_are_refused(monkeypatch):
    from codesign.quantize import gguf_grids

    gguf_grids._codebook.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="pip install gguf"):
        quantize_gguf(random(2, 256), parse_scheme("IQ3_S"))


def test_every_type_of_the_catalog_is_encoded_or_named():
    missing = {scheme.name for scheme in SCHEMES.values() if scheme.family == "gguf"} - set(ENCODED_TYPES)
    assert missing == {"IQ1_S", "IQ1_M"}
