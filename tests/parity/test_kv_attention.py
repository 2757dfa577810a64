"""The KV-cache attention of kernels/kv_attention against its float64 reference, in every variant that runs here."""

import numpy as np
import pytest
from native_programs import EMULATED, SANITIZED, build, reason_to_skip, run
from weight_only_cases import reference_of

from codesign.errors import InputError
from codesign.native import absence

if absence():
    pytest.skip(absence() or "", allow_module_level=True)

from codesign.native import load
from codesign.native.attention import KV_FORMATS, KvCache, KvShape

reference = reference_of("kv_attention")
ISAS = [isa for isa in range(6) if load().isa_runs(isa)]
ALLOWED = {"fp16": 2e-4, "bf16": 2e-4, "int8": 5e-4, "int4": 5e-4}  # of the reference's norm; the goals are 1e-3, 3e-3


def made(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def filled(shape: KvShape, tokens: int, seed: int = 0):
    k, v = (made((seed, i), shape.batch, shape.kv_heads, tokens, shape.head_dim) for i in (1, 2))
    cache = KvCache(shape)
    cache.append(k, v)
    return cache, k, v


def exact(q, k, v, kv_format):
    return reference.attention(q, reference.dequantized(k, kv_format), reference.dequantized(v, kv_format))


def error_fraction(out, wanted):
    """The largest error of a row, of the row's norm."""
    return float((np.linalg.norm(out - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max())


SHAPES = [  # batch, heads, kv_heads, head_dim, q_tokens, tokens
    (1, 1, 1, 16, 1, 1),
    (2, 2, 1, 64, 1, 15),
    (1, 3, 1, 80, 1, 16),
    (1, 4, 1, 96, 1, 17),
    (3, 8, 2, 128, 1, 33),
    (1, 5, 1, 256, 1, 63),
    (2, 7, 1, 128, 1, 64),
    (1, 4, 4, 128, 1, 65),
    (1, 8, 1, 64, 3, 200),
    (1, 4, 2, 112, 8, 300),
    (1, 8, 2, 128, 1, 4099),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_every_variant_gives_the_exact_result(isa, kv_format):
    for number, (batch, heads, kv_heads, head_dim, q_tokens, tokens) in enumerate(SHAPES):
        shape = KvShape(kv_format, batch, kv_heads, head_dim, tokens)
        cache, k, v = filled(shape, tokens, number)
        q = made((number, 3), batch, heads, q_tokens, head_dim)
        wanted = exact(q, k, v, kv_format)
        for threads in (1, 2, 3):
            found = error_fraction(cache.attend(q, threads=threads, isa=isa), wanted)
            assert found <= ALLOWED[kv_format], (SHAPES[number], threads, found)


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_token_by_token_equals_all_at_once(kv_format):
    shape = KvShape(kv_format, 2, 2, 80, 150)
    cache, k, v = filled(shape, 150)
    grown = KvCache(shape)
    q = made(9, 2, 6, 1, 80)
    for token in range(150):
        grown.append(k[:, :, token : token + 1], v[:, :, token : token + 1])
        if token + 1 in (1, 15, 16, 17, 65):
            part = exact(q, k[:, :, : token + 1], v[:, :, : token + 1], kv_format)
            assert error_fraction(grown.attend(q), part) <= ALLOWED[kv_format]
    np.testing.assert_array_equal(grown.attend(q), cache.attend(q))


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_sequences_of_different_lengths(kv_format):
    shape = KvShape(kv_format, 3, 2, 64, 300)
    cache, k, v = filled(shape, 300)
    q = made(5, 3, 8, 1, 64)
    cache.lengths[:] = lengths = (1, 300, 140)
    for threads in (1, 2, 5):
        out = cache.attend(q, threads=threads)
        for b, tokens in enumerate(lengths):
            wanted = exact(q[b : b + 1], k[b : b + 1, :, :tokens], v[b : b + 1, :, :tokens], kv_format)
            assert error_fraction(out[b : b + 1], wanted) <= ALLOWED[kv_format]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_what_lies_behind_the_last_token_does_not_matter(isa, kv_format):
    shape = KvShape(kv_format, 1, 1, 64, 128)
    cache, k, v = filled(shape, 128)
    cache.append(k[:, :, :0], v[:, :, :0])
    wild = np.full((1, 1, 128, 64), 6e4, np.float32)
    wild_cache = KvCache(shape)
    wild_cache.append(wild, wild)
    for one in (cache, wild_cache):
        one.lengths[:] = 0
        one.append(k[:, :, :37], v[:, :, :37])
    q = made(4, 1, 4, 1, 64)
    np.testing.assert_array_equal(cache.attend(q, isa=isa), wild_cache.attend(q, isa=isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_scores_far_apart(isa, kv_format):
    """A probability of nearly one beside tiny ones, late in the sequence: the maximum rises by hundreds."""
    shape = KvShape(kv_format, 1, 1, 64, 600)
    k, v = made(1, 1, 1, 600, 64), made(2, 1, 1, 600, 64)
    q = made(3, 1, 1, 1, 64)
    k[:, :, 500] = 4 * q[:, :, 0]
    k[:, :, 100] = -4 * q[:, :, 0]
    cache = KvCache(shape)
    cache.append(k, v)
    out = cache.attend(q, scale=1.0, isa=isa)
    keys, values = reference.dequantized(k, kv_format), reference.dequantized(v, kv_format)
    assert error_fraction(out, reference.attention(q, keys, values, 1.0)) <= ALLOWED[kv_format]


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_zeros_and_bfloat16(kv_format):
    shape = KvShape(kv_format, 1, 2, 96, 20)
    zero = np.zeros((1, 2, 20, 96), np.uint16)
    cache = KvCache(shape)
    cache.append(zero, zero)
    q = (made(1, 1, 4, 1, 96).view(np.uint32) >> 16).astype(np.uint16)
    out = cache.attend(q)
    assert out.dtype == np.uint16
    assert not out.any()
    k, v = ((made(seed, 1, 2, 20, 96).view(np.uint32) >> 16).astype(np.uint16) for seed in (2, 3))
    full = KvCache(shape)
    full.append(k, v)
    q32, k32, v32 = ((x.astype(np.uint32) << 16).view(np.float32) for x in (q, k, v))
    found = (full.attend(q).astype(np.uint32) << 16).view(np.float32)
    assert error_fraction(found, exact(q32, k32, v32, kv_format)) <= 2**-8  # the result's own rounding


def test_nothing_is_written_outside_the_result_and_the_workspace():
    native, shape = load(), KvShape("int4", 2, 2, 112, 200)
    cache, _, _ = filled(shape, 200)
    q, threads = made(1, 2, 6, 1, 112), 3
    size = native.kv_attention_workspace_bytes(shape.native(6, 1), threads)
    workspace, out = np.full(size + 128, 171, np.uint8), np.full(q.size + 32, 7, np.float32)
    at = -(-workspace.ctypes.data // 64) * 64
    lead = at - workspace.ctypes.data
    status = native.kv_attention_run(
        -1,
        shape.native(6, 1),
        q.ctypes.data,
        cache.address,
        cache.lengths.ctypes.data,
        out[16:].ctypes.data,
        0,
        0.1,
        threads,
        at,
    )
    assert status == 0
    assert (out[:16] == 7).all()
    assert (out[-16:] == 7).all()
    assert (workspace[:lead] == 171).all()
    assert (workspace[lead + size :] == 171).all()
    assert not (out[16:-16] == 7).any()


def test_rounded_errors_stay_below_the_goals():
    """Over 4,099 tokens the arithmetic adds less than 1e-3 (fp16) and 3e-3 (integers) to the exact result."""
    for kv_format, goal in (("fp16", 1e-3), ("int8", 3e-3), ("int4", 3e-3)):
        cache, k, v = filled(KvShape(kv_format, 1, 2, 128, 4099), 4099)
        q = made(1, 1, 8, 1, 128)
        assert 0 < error_fraction(cache.attend(q, threads=2), exact(q, k, v, kv_format)) <= goal


def test_what_is_refused():
    with pytest.raises(InputError, match=r'"int3" is no KV format; use one of fp16, bf16, int8, int4'):
        KvShape("int3", 1, 1, 64, 8)
    with pytest.raises(InputError, match="multiple of 16 up to 256"):
        KvShape("int8", 1, 1, 72, 8)
    with pytest.raises(InputError, match="at least 1"):
        KvShape("int8", 0, 1, 64, 8)
    cache = KvCache(KvShape("int8", 1, 2, 64, 8))
    q, k = made(1, 1, 4, 1, 64), made(2, 1, 2, 8, 64)
    with pytest.raises(InputError, match="empty; append"):
        cache.attend(q)
    cache.append(k, k)
    with pytest.raises(InputError, match="do not fit in a cache of 8"):
        cache.append(k[:, :, :1], k[:, :, :1])
    with pytest.raises(InputError, match=r"q has the shape|multiple of 2"):
        cache.attend(q[:, :3])
    with pytest.raises(InputError, match="v is float64"):
        cache.append(k, k.astype(np.float64))
    with pytest.raises(InputError, match="k has the shape"):
        cache.append(k[:, :1], k)
    with pytest.raises(InputError, match="threads is 0"):
        cache.attend(q, threads=0)
    with pytest.raises(InputError, match="does not run the variant"):
        cache.attend(q, isa=4)


PROGRAM_SHAPES = [(1, 4, 1, 80, 1, 17), (2, 7, 1, 112, 1, 130), (1, 2, 2, 256, 2, 65)]


@pytest.mark.slow
@pytest.mark.parametrize("target", [SANITIZED, EMULATED], ids=lambda target: target.name)
def test_programs_of_other_builds_agree(target, tmp_path):
    """Address and undefined-behaviour sanitizers on x86-64, and the NEON variants in an emulator."""
    reason = reason_to_skip(target)
    if reason:
        pytest.skip(reason)
    isas = [isa for isa in target.isas if target is EMULATED or load().isa_runs(isa)]
    cases, wanted = b"", []
    for isa in isas:
        for number, kv_format in enumerate(KV_FORMATS):
            for batch, heads, kv_heads, head_dim, q_tokens, tokens in PROGRAM_SHAPES:
                q = made(1, batch, heads, q_tokens, head_dim)
                k, v = (made(seed, batch, kv_heads, tokens, head_dim) for seed in (2, 3))
                head = np.array([isa, number, batch, heads, kv_heads, head_dim, q_tokens, tokens, 2], np.int64)
                cases += b"".join(x.tobytes() for x in (head, q, k, v))
                keys, values = reference.dequantized(k, kv_format), reference.dequantized(v, kv_format)
                wanted.append((kv_format, reference.attention(q, keys, values, 0.125)))
    found = np.frombuffer(run(build("kv_attention", target, tmp_path), target, cases), np.float32)
    assert len(found) == sum(one.size for _, one in wanted)
    for kv_format, one in wanted:
        assert error_fraction(found[: one.size].reshape(one.shape), one) <= ALLOWED[kv_format]
        found = found[one.size :]
