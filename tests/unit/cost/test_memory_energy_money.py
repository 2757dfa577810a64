from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import round_hardware, small_model

import codesign
from codesign.cost.memory import (
    activation_bytes,
    group_bytes,
    kv_bytes,
    largest_batch,
    largest_context,
    total_weight_bytes,
)
from codesign.cost.money import usd_per_million_tokens
from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction, add_predictions
from codesign.cost.workload import Workload
from codesign.model.groups import fused_groups
from codesign.model.layers import Attention
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv

MODEL, KV = small_model(), parse_kv("bf16")
BF16 = parse_scheme("BF16")


def test_sixteen_bit_weights_are_two_bytes_per_parameter():
    groups = fused_groups(MODEL)
    assert total_weight_bytes(MODEL, groups, (BF16,) * len(groups), BF16) == 2 * MODEL.parameter_count


@pytest.mark.parametrize("name", ["gpt2", "phi-2", "mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b", "gemma-2-2b"])
def test_every_parameter_of_a_model_is_stored(name):
    model = codesign.load_model(name)
    groups = fused_groups(model)
    stored = total_weight_bytes(model, groups, (BF16,) * len(groups), BF16)
    assert stored == pytest.approx(2 * model.parameter_count, rel=1e-6)


def test_fewer_bits_never_need_more_bytes():
    group = fused_groups(MODEL)[0]
    sizes = [group_bytes(group, parse_scheme(name)) for name in ("FP32", "BF16", "W8A16", "W4A16-g32", "W4A16-g128")]
    assert sizes == sorted(sizes, reverse=True)


def test_a_window_bounds_the_cache():
    windowed = replace(
        MODEL, blocks=tuple(replace(b, attention=Attention(16, 4, 128, window_tokens=1024)) for b in MODEL.blocks)
    )
    assert kv_bytes(windowed, KV, 1, 4096) == kv_bytes(MODEL, KV, 1, 1024)


@settings(max_examples=50)
@given(st.floats(0, 2**34), st.integers(1, 64))
def test_the_largest_context_and_batch_fit_and_the_next_do_not(free_bytes, batch):
    context = largest_context(MODEL, KV, free_bytes, batch)
    assert kv_bytes(MODEL, KV, batch, context) <= free_bytes
    if context < MODEL.max_context_tokens:
        assert kv_bytes(MODEL, KV, batch, context + 1) > free_bytes
    most = largest_batch(MODEL, KV, free_bytes, 1000)
    assert kv_bytes(MODEL, KV, most, 1000) <= free_bytes * (1 + 1e-12)
    assert kv_bytes(MODEL, KV, most + 1, 1000) > free_bytes


def test_activations_grow_with_the_prompt_up_to_a_chunk():
    short, chunk, long = (activation_bytes(MODEL, Workload(1, prompt, 1)) for prompt in (64, 8192, 80_000))
    assert short < chunk == long


def test_money_per_million_tokens():
    rate = Prediction(1000.0, 500.0, 2000.0, Origin.DATASHEET)
    cost = usd_per_million_tokens(3.6, 2, rate)
    assert (cost.value, cost.low, cost.high) == (2.0, 1.0, 4.0)


def test_a_sum_is_as_trusted_as_its_weakest_part():
    parts = [Prediction(1, 1, 1, Origin.MEASURED), Prediction(2, 1, 4, Origin.TRANSFERRED)]
    whole = add_predictions(parts)
    assert (whole.value, whole.low, whole.high, whole.origin) == (3, 2, 5, Origin.TRANSFERRED)
    assert add_predictions([]).value == 0


def test_predicting_a_scheme_keeps_what_the_library_cannot_quantize():
    model = replace(MODEL, name="llama-7b")
    sixteen, four = (codesign.predict(round_hardware(), model, name) for name in ("BF16", "W4A16-g128"))
    head_and_embedding = 2 * 2 * 32000 * 2048
    rest = [one.memory.weight_bytes - head_and_embedding for one in (four, sixteen)]
    assert rest[0] / rest[1] == pytest.approx(4.125 / 16, rel=0.01)
    assert four.fits
    assert four.largest_batch > sixteen.largest_batch
