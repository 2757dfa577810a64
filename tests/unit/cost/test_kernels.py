import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import round_hardware

from codesign.cost.arrays import as_floats
from codesign.cost.attention import AttentionShape, attention, block_attention, latent_attention
from codesign.cost.collectives import collective
from codesign.cost.kernels import gemm, moe, scheme_math
from codesign.cost.moe_time import MoeShape
from codesign.cost.origin import Origin
from codesign.cost.target import Target
from codesign.errors import CapabilityError
from codesign.model.layers import Attention, LatentAttention
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv

TARGET = Target(round_hardware(), "vllm")
LAUNCHING = Target(round_hardware(launch_overhead_s=1e-5), "vllm")
SIZES = st.integers(1, 64).map(lambda x: x * 128)


def seconds(target, name, m, n, k) -> float:
    return float(gemm(target, parse_scheme(name), as_floats(m), as_floats(n), as_floats(k)).predicted_s)


def test_a_gemv_takes_its_bytes_over_the_bandwidth():
    moved = 4096 * 4096 * 2 + 4096 * 2 + 4096 * 2
    assert seconds(TARGET, "BF16", 1, 4096, 4096) == pytest.approx(moved / 2e12)


def test_a_large_gemm_takes_its_flop_over_the_rate():
    assert seconds(TARGET, "BF16", 8192, 8192, 8192) == pytest.approx(2 * 8192**3 / 200e12)
    assert seconds(TARGET, "W8A8", 8192, 8192, 8192) == pytest.approx(2 * 8192**3 / 400e12)


def test_dequantization_makes_weight_only_schemes_slower_at_large_batch():
    assert seconds(TARGET, "W4A16-g128", 1, 8192, 8192) < seconds(TARGET, "BF16", 1, 8192, 8192)
    assert seconds(TARGET, "W4A16-g128", 8192, 8192, 8192) > seconds(TARGET, "BF16", 8192, 8192, 8192)


def test_dynamic_activations_cost_one_more_launch():
    dynamic, static = (
        gemm(LAUNCHING, parse_scheme(name), as_floats(1), as_floats(4096), as_floats(4096))
        for name in ("W8A8", "W8A8-static")
    )
    assert float(dynamic.time.fixed_s) == pytest.approx(2 * float(static.time.fixed_s))


def test_emulated_fp8_is_stored_in_eight_bits_and_multiplied_in_sixteen():
    assert scheme_math(parse_scheme("FP8"), TARGET) == ("bf16", False)
    assert scheme_math(parse_scheme("W8A8"), TARGET) == ("int8", True)


def test_a_scheme_without_kernels_is_refused_with_the_reason():
    with pytest.raises(CapabilityError, match="W4A8-g128 does not run on round with vllm"):
        seconds(TARGET, "W4A8-g128", 1, 4096, 4096)


@given(SIZES, SIZES, SIZES, st.sampled_from(["BF16", "W8A16", "W4A16-g128", "W8A8"]))
def test_arrays_and_numbers_agree_and_intervals_contain_the_value(m, n, k, name):
    many = gemm(TARGET, parse_scheme(name), as_floats([m, 2 * m]), as_floats(n), as_floats(k))
    assert many.predicted_s[0] == pytest.approx(seconds(TARGET, name, m, n, k))
    assert (many.low_s <= many.predicted_s).all()
    assert (many.predicted_s <= many.high_s).all()
    assert many.origin is Origin.DATASHEET


@given(st.integers(1, 8192), SIZES, SIZES)
def test_more_rows_are_never_faster(m, n, k):
    assert seconds(TARGET, "W4A16-g128", m, n, k) <= seconds(TARGET, "W4A16-g128", m + 1, n, k)


def expert_seconds(tokens, skew=0.0, name="BF16", parallel=1.0) -> float:
    values = (tokens, 4096, 14336, 8, 2, skew, 3, parallel)
    return float(moe(TARGET, parse_scheme(name), MoeShape(*(as_floats(value) for value in values))).predicted_s)


def test_one_token_reads_only_its_experts():
    assert expert_seconds(1) == pytest.approx(2 * 3 * 4096 * 14336 * 2 / 2e12, rel=0.01)


def test_many_tokens_read_every_expert():
    assert expert_seconds(128) == pytest.approx(8 * 3 * 4096 * 14336 * 2 / 2e12, rel=0.05)


def test_expert_parallelism_divides_the_work():
    assert expert_seconds(512, parallel=4.0) == pytest.approx(expert_seconds(512) / 4, rel=1e-6)


def decode(kv="bf16", **changes) -> float:
    shape = {"batch": 4, "query_tokens": 1, "kv_tokens": 8192, "heads": 32, "kv_heads": 8, "head_dim": 128} | changes
    return float(
        attention(TARGET, parse_kv(kv), AttentionShape(**{k: as_floats(v) for k, v in shape.items()})).predicted_s
    )


def test_decode_attention_reads_the_cache():
    assert decode() == pytest.approx(4 * 8192 * 2 * 8 * 128 * 2 / 2e12, rel=0.01)


def test_half_the_kv_bits_take_half_the_time():
    assert decode("fp8") == pytest.approx(decode() / 2, rel=0.01)
    assert decode("int4") < decode("int8") < decode()


def test_prefill_attention_is_bound_by_arithmetic():
    pairs = 4 * 8192 * 8193 / 2
    assert decode(query_tokens=8192) == pytest.approx(2 * pairs * 32 * 256 / 200e12, rel=1e-6)


def test_a_window_limits_decode_to_itself():
    windowed, full = Attention(32, 8, 128, window_tokens=1024), Attention(32, 8, 128)
    kv = parse_kv("bf16")
    short = block_attention(TARGET, kv, full, 1, 1, 1024).predicted_s
    assert float(block_attention(TARGET, kv, windowed, 1, 1, 30000).predicted_s) == pytest.approx(
        float(short), rel=0.01
    )


def test_latent_decode_reads_the_compressed_cache():
    latent = LatentAttention(128, 512, 64, 128, 128)
    time = latent_attention(TARGET, parse_kv("bf16"), latent, 1, 1, 32768).time
    assert float(time.memory_s) == pytest.approx(32768 * 576 * 2 / 2e12, rel=0.02)


def test_heads_are_divided_over_devices():
    four = Target(round_hardware(), "vllm", 4)
    kv, shape = parse_kv("bf16"), Attention(32, 8, 128)
    whole, part = (float(block_attention(t, kv, shape, 8, 1, 4096).predicted_s) for t in (TARGET, four))
    assert part == pytest.approx(whole / 4, rel=0.01)


def test_all_reduce_takes_wire_bytes_and_latency():
    time = collective(TARGET, "all_reduce", as_floats([2, 8]), as_floats(300e6)).predicted_s
    assert np.allclose(time, [1e-3 + 2e-6, 1.75e-3 + 2e-6])


def test_a_machine_without_links_has_no_all_reduce():
    alone = Target(round_hardware(peer_link=None, host_link=None), "vllm")
    with pytest.raises(CapabilityError, match="no link to peers"):
        collective(alone, "all_reduce", as_floats(2), as_floats(1e6))
