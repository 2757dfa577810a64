"""Whole steps through blocks: what is computed, what is checked, what is refused, what is predicted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.codec import to_plain
from codesign.errors import InputError
from codesign.hardware.file import load_hardware
from codesign.model.file import load_model
from codesign.profiler.block_time import predict_blocks, prediction_notes
from codesign.profiler.candidates import BlockQuestion, stored_bytes, weight_count
from codesign.profiler.kernel import BlockCase, BlockSizes
from codesign.profiler.records import case_from_json, case_json

torch = pytest.importorskip("torch")
blocks = pytest.importorskip("codesign.profiler.blocks")
transformer = pytest.importorskip("codesign.profiler.transformer")

SIZES = BlockSizes(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96)
DECODE = BlockCase("tiny", SIZES, "BF16", "bf16", blocks=2, batch=3, context_tokens=12, phase="decode")
PREFILL = replace(DECODE, phase="prefill")


def kernel(library: str, name: str, scheme: str):
    found = [one for one in blocks.all_kernels() if (one.library, one.name, one.scheme) == (library, name, scheme)]
    assert len(found) == 1
    return found[0]


def prepared(case: BlockCase, name: str = "linear+sdpa", library: str = "torch"):
    one = kernel(library, name, case.scheme)
    assert one.refuses(case) is None
    return one.prepare(case, 1)


def numpy_blocks(case: BlockCase) -> np.ndarray:
    """Return the hidden state behind the blocks, written out in float64, one token of one sequence at a time."""
    sizes, dim = case.sizes, case.sizes.head_dim
    x = transformer.rounded(transformer.hidden_state(case), "bf16").astype(np.float64)
    x = x.reshape(case.batch, case.query_tokens, sizes.hidden)
    first = case.context_tokens - case.query_tokens
    for index in range(case.blocks):
        w = {name: transformer.rounded(transformer.block_weights(case, index, name), "bf16") for name in case.shapes}
        known = [transformer.rounded(part, "bf16") for part in transformer.cached_tokens(case, index)]
        out = np.empty_like(x)
        for b in range(case.batch):
            keys, values = [list(part[b].transpose(1, 0, 2)) for part in known]
            for t in range(case.query_tokens):
                h = x[b, t]
                qkv = w["qkv"] @ norm(h)
                q = qkv[: sizes.heads * dim].reshape(sizes.heads, dim)
                k, v = qkv[sizes.heads * dim :].reshape(2, sizes.kv_heads, dim)
                keys.append(turned(k, first + t))
                values.append(v)
                shared = sizes.heads // sizes.kv_heads
                rows = [attend(row, keys, values, i // shared) for i, row in enumerate(turned(q, first + t))]
                h = h + w["o"] @ np.concatenate(rows)
                gate, up = np.split(w["gate_up"] @ norm(h), 2)
                out[b, t] = h + w["down"] @ (gate / (1 + np.exp(-gate)) * up)
        x = out
    return x.reshape(-1, sizes.hidden)


def norm(h: np.ndarray) -> np.ndarray:
    return h / np.sqrt(np.mean(h**2) + 1e-5)


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """Return vectors whose pairs (i, i + half) are complex numbers, each turned by its own angle."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    pairs = pairs * np.exp(1j * position * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attend(q: np.ndarray, keys: list, values: list, head: int) -> np.ndarray:
    scores = np.array([key[head] @ q for key in keys]) / np.sqrt(len(q))
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()) @ np.array([value[head] for value in values])


@pytest.mark.parametrize(
    "case", [DECODE, PREFILL, replace(DECODE, batch=1, context_tokens=1)], ids=lambda one: one.phase
)
def test_the_float32_reference_is_the_step_written_out_by_hand(case):
    exact, plain = prepared(case).references()
    by_hand = numpy_blocks(case)
    assert np.abs(exact - by_hand).max() < 0.02 * np.abs(by_hand).max()  # keys and values are kept in bf16
    assert np.linalg.norm(exact - by_hand) < 2e-3 * np.linalg.norm(by_hand)
    assert np.linalg.norm(plain - by_hand) > np.linalg.norm(exact - by_hand)


@pytest.mark.parametrize("case", [DECODE, PREFILL], ids=lambda one: one.phase)
def test_a_right_step_passes_its_check_and_a_wrong_one_does_not(case):
    step = prepared(case)
    assert blocks.check_output(step, case).passed
    wrong = replace(step, output=lambda value: 1.05 * step.output(value))
    check = blocks.check_output(wrong, case)
    assert not check.passed
    assert "is allowed" in check.reason
    broken = replace(step, output=lambda value: step.output(value) * np.nan)
    assert blocks.check_output(broken, case).reason.endswith("not finite")


def test_a_step_gives_the_same_every_time_although_it_writes_into_its_cache():
    step = prepared(DECODE)
    first = step.output(step.run(0))
    assert np.array_equal(step.output(step.run(0)), first)


def test_a_step_reads_its_weights_and_its_cache():
    weights = 2 * 2 * (64 * 128 + 64 * 64 + 192 * 64 + 64 * 96)
    cache = 2 * 2 * 3 * 12 * 2 * 16 * 2
    assert prepared(DECODE).read_bytes == weights + cache == stored_bytes(DECODE)
    assert prepared(PREFILL).read_bytes == weights
    assert weight_count(DECODE) == (weights + cache) / 2


def test_dynamic_int8_is_checked_against_activations_that_are_rounded_alike():
    case = replace(DECODE, scheme="W8A8")
    one = kernel("torch", "linear_dynamic_fbgemm+sdpa", "W8A8")
    if one.refuses(case):
        pytest.skip(one.refuses(case))
    check = blocks.check_output(one.prepare(case, 1), case)
    assert check.passed
    assert check.error_fraction > 2e-3  # of int8, not of bf16


@pytest.mark.parametrize("kv_format", ["int8", "int4"])
def test_our_attention_keeps_its_cache_in_few_bits(kv_format):
    case = replace(DECODE, kv_format=kv_format)
    one = kernel("torch", "linear+kv_attention", "BF16")
    if one.refuses(case):
        pytest.skip(one.refuses(case))
    step = one.prepare(case, 1)
    assert blocks.check_output(step, case).passed
    assert step.read_bytes < prepared(DECODE).read_bytes


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("linear+sdpa", {"kv_format": "int8"}, "no int8 cache"),
        ("linear+kv_attention", {}, "no bf16 cache here"),
        ("linear+kv_attention", {"kv_format": "int8", "phase": "prefill"}, "no causal mask"),
        ("linear+kv_attention", {"kv_format": "int8", "sizes": replace(SIZES, head_dim=24)}, "not a multiple of 16"),
    ],
)
def test_what_cannot_run_is_refused_with_a_reason(name, changed, reason):
    assert reason in kernel("torch", name, "BF16").refuses(replace(DECODE, **changed))


def test_kernels_that_do_not_quantize_activations_are_no_layers():
    case = replace(DECODE, scheme="W8A8-static")
    assert "no whole linear layer" in kernel("torch", "int_mm+sdpa", "W8A8-static").refuses(case)


def test_sizes_are_those_of_the_model():
    assert blocks.block_sizes(load_model("llama-2-7b")) == BlockSizes(4096, 32, 32, 128, 11008)
    assert blocks.block_sizes(load_model("llama-3.1-8b")).kv_heads == 8
    with pytest.raises(InputError, match="--blocks runs blocks of softmax attention and one MLP"):
        blocks.block_sizes(load_model("mixtral-8x7b"))


def test_a_case_survives_json():
    assert case_from_json(case_json(DECODE), "here") == DECODE


def test_a_question_asks_for_decode_and_prefill_in_every_kv_format():
    asked = BlockQuestion("tiny", SIZES, 2, contexts=(8, 16), prompts=(4,), kv_formats=("bf16", "int8"))
    steps = list(asked.steps)
    assert len(steps) == 6
    assert steps[:3] == [("decode", 8, "bf16"), ("decode", 16, "bf16"), ("prefill", 4, "bf16")]
    assert "steps" not in to_plain(asked)


HARDWARE = load_hardware("epyc-9654")


@given(
    count=st.integers(1, 4),
    batch=st.integers(1, 64),
    context=st.integers(1, 4096),
    phase=st.sampled_from(["decode", "prefill"]),
)
def test_a_step_is_predicted_as_the_sum_of_its_blocks(count, batch, context, phase):
    case = replace(DECODE, blocks=count, batch=batch, context_tokens=context, phase=phase)
    alone = predict_blocks(replace(case, blocks=1), HARDWARE, "torch", "linear+sdpa")
    whole = predict_blocks(case, HARDWARE, "torch", "linear+sdpa")
    assert whole.value == pytest.approx(count * alone.value)
    assert whole.low <= whole.value <= whole.high
    longer = predict_blocks(replace(case, context_tokens=context + 1), HARDWARE, "torch", "linear+sdpa")
    assert longer.value >= whole.value


def test_two_llama_blocks_are_predicted_near_the_time_of_reading_them():
    sizes = BlockSizes(4096, 32, 32, 128, 11008)
    case = BlockCase("llama-2-7b", sizes, "BF16", "bf16", 2, 1, 1024, "decode", threads=96)
    read_bytes = 2 * 202_375_168 * 2 + 2 * 2 * 1024 * 4096 * 2
    assert stored_bytes(case) == read_bytes
    roof_s = read_bytes / HARDWARE.memory.bandwidth_bytes_per_s
    assert roof_s < predict_blocks(case, HARDWARE, "torch", "linear+sdpa").value < 2.5 * roof_s


@pytest.mark.parametrize("kernel", ["w8a8_gemm+kv_attention", "w4a8_gemm+sdpa"])
def test_a_step_on_a_slower_memory_takes_longer_by_what_it_streams(kernel):
    """On a machine with measured threads, whose sheets hold their rates as shares of what memory gives."""
    case = BlockCase(
        "llama-2-7b", BlockSizes(4096, 32, 32, 128, 11008), "W8A8", "bf16", 2, 1, 1024, "decode", threads=1
    )
    case = replace(case, scheme="W8A8" if kernel.startswith("w8") else "W4A8-g128")
    machine = load_hardware("zen4-2-core")
    stated_s, half_s = (
        predict_blocks(case, machine, "codesign", kernel, memory_bytes_per_s=share * 33e9).value for share in (1.0, 0.5)
    )
    assert predict_blocks(case, machine, "codesign", kernel).value == pytest.approx(stated_s, rel=0.02)
    stored_s = stored_bytes(case) / 33e9
    assert 0.9 * stored_s < half_s - stated_s < 1.5 * stored_s


def test_a_library_that_codesign_cannot_predict_leaves_a_reason():
    notes = prediction_notes(lambda: predict_blocks(DECODE, HARDWARE, "no-such-library", "linear+sdpa"))
    assert notes["predicted_s"] is None
    assert "no-such-library" in notes["predicted_why"]
