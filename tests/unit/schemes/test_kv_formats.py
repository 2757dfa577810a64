import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.schemes.kv import KV_FORMATS, KvFormat, bytes_per_token, parse_kv, scale_bytes_per_token

ANY_KV = st.sampled_from(list(KV_FORMATS.values()))
HEAD_DIM = st.sampled_from([64, 80, 96, 128, 256])


@pytest.mark.parametrize("name", KV_FORMATS)
def test_names_round_trip(name: str) -> None:
    kv = parse_kv(name)
    assert str(kv) == name
    assert parse_kv(name.upper()) == kv
    assert kv.description


@pytest.mark.parametrize(
    ("alias", "name"),
    [("", "bf16"), ("bfloat16", "bf16"), ("float16", "fp16"), ("fp8_e4m3", "fp8"), ("FP8-E5M2", "fp8_e5m2")],
)
def test_aliases(alias: str, name: str) -> None:
    assert parse_kv(alias).name == name


@pytest.mark.parametrize("text", ["auto", "fp7", "int3", "x" * 10_000])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="Known are bf16, fp16") as caught:
        parse_kv(text)
    assert len(str(caught.value)) < 300


@given(ANY_KV, st.integers(1, 200), st.integers(1, 200), HEAD_DIM)
def test_more_vectors_never_take_fewer_bytes(kv: KvFormat, vectors: int, more: int, head_dim: int) -> None:
    assert bytes_per_token(kv, vectors * head_dim, head_dim) < bytes_per_token(
        kv, (vectors + more) * head_dim, head_dim
    )


@given(st.integers(1, 200), HEAD_DIM)
def test_fewer_bits_take_fewer_bytes(vectors: int, head_dim: int) -> None:
    sizes = [bytes_per_token(parse_kv(name), vectors * head_dim, head_dim) for name in ("fp16", "int8", "fp8", "int4")]
    assert sizes == sorted(sizes, reverse=True)


def test_one_scale_per_tensor_takes_no_space() -> None:
    assert scale_bytes_per_token(parse_kv("fp8"), 4096, 128) == 0
    assert parse_kv("fp8").quantized
    assert not parse_kv("bf16").quantized


def test_latent_vectors_that_are_not_whole_heads() -> None:
    # DeepSeek-V3 caches 512 + 64 values per token and block; one vector of 576.
    assert bytes_per_token(parse_kv("int8"), 576, 576) == 576 + 2
