"""Signed advice: never against the prediction beside it, never against what was measured, silent where it is noise."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import round_hardware, small_model

import codesign
from codesign.cost.advice import (
    deployment_advice,
    host_advice,
    kv_advice,
    predicted_advice,
    scheme_advice,
    uniform_kv_formats,
    uniform_schemes,
)
from codesign.cost.advice_text import Advice, AdviceKind, advise, news, sentences
from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.curve import (
    BATCHES,
    STOPS_PAYING_GAIN,
    Belief,
    Crossing,
    GainCurve,
    belief,
    changed_gain_curve,
    context_points,
    crossing,
    gain_curve,
    kv_context_curve,
    ratio_ends,
)
from codesign.cost.deployment import Assignment, Deployment, deploy, uniform_assignment
from codesign.cost.inference import predict_inference
from codesign.cost.kernels import KernelPrediction
from codesign.cost.measured import read_measured
from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction
from codesign.cost.roofline import KernelTime
from codesign.cost.step import decode_step, prefill_step
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns
from codesign.schemes.capability import baseline_scheme
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting

LLAMA = codesign.load_model("llama-3.1-8b")
MEASURED = Path(os.environ.get("CODESIGN_REFERENCE_DATA", Path(__file__).parents[4] / "shared")) / "measured"
needs_measured = pytest.mark.skipif(not MEASURED.exists(), reason=f"reference data not found: {MEASURED}")


def placed(hw: str, setting: Setting, model: str = "llama-3.1-8b") -> tuple[Deployment, Assignment]:
    """Return a deployment and its 16-bit baseline."""
    where = deploy(codesign.load_hardware(hw), codesign.load_model(model), setting)
    return where, uniform_assignment(where, baseline_scheme(where.target.hardware))


def gain(value: float, low: float, high: float) -> Prediction:
    return Prediction(value, low, high, Origin.CALIBRATED)


@pytest.mark.parametrize(
    ("one", "level", "sign", "expected"),
    [
        (gain(1.5, 1.2, 1.8), 1.0, 1, Belief.SURE),
        (gain(1.5, 0.9, 1.8), 1.0, 1, Belief.PROBABLE),
        (gain(1.1, 0.5, 2.5), 1.0, 1, Belief.NO),
        (gain(1.5, 1.2, 1.8), 1.0, -1, Belief.NO),
        (gain(0.7, 0.6, 0.9), 1.0, -1, Belief.SURE),
        (gain(0.7, 0.6, 1.2), 1.0, -1, Belief.PROBABLE),
        (gain(0.95, 0.3, 2.8), 1.0, -1, Belief.NO),
        (gain(1.02, 1.01, 1.04), 1.05, -1, Belief.SURE),
    ],
)
def test_what_an_interval_supports(one: Prediction, level: float, sign: int, expected: Belief) -> None:
    assert belief(one, level, sign) is expected


@given(st.floats(0.1, 10), st.floats(0.1, 1), st.floats(1, 10))
def test_nothing_is_both_faster_and_slower(value: float, low: float, high: float) -> None:
    one = gain(value, value * low, value * high)
    assert not (belief(one, 1.0, 1) and belief(one, 1.0, -1))
    mirrored = gain(1 / value, 1 / (value * high), 1 / (value * low))
    assert belief(one, 1.0, 1) is belief(mirrored, 1.0, -1)


def falling(center: float, spread: float) -> object:
    """Return a curve that falls through 1 at `center`; its interval is a factor wide to both sides."""

    def curve(points: FloatArray) -> GainCurve:
        value = as_floats((center / points) ** 0.5)
        return GainCurve(value, value / spread, value * spread, Origin.CALIBRATED)

    return curve


def test_a_crossing_is_found_to_the_last_batch_with_its_interval() -> None:
    found = crossing(falling(100.5, 1.1), BATCHES, 1.0, -1)
    assert found == Crossing(101, 84, 122, 16384, Belief.SURE)
    assert crossing(falling(1e6, 1.1), BATCHES, 1.0, -1).value is None
    assert crossing(falling(0.5, 1.1), BATCHES, 1.0, -1).value == 1


def test_a_crossing_that_may_be_anywhere_is_not_believed() -> None:
    found = crossing(falling(100.5, 100.0), BATCHES, 1.0, -1)
    assert (found.value, found.earliest, found.latest, found.belief) == (101, 1, None, Belief.NO)


def test_the_same_kernels_gain_exactly_nothing() -> None:
    where, baseline = placed("h100", Setting(batch=8))
    same = gain_curve(where, baseline, baseline, decode_step(where.workload)).at(0)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="same kernels"):
        changed_gain_curve(where, baseline, baseline, decode_step(where.workload))


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize("hw", ["h100", "t4", "ryzen-7950x"])
def test_gains_are_those_of_the_predictions(hw: str, engine: str) -> None:
    where, baseline = placed(hw, Setting(batch=4, engine=engine))
    before = predict_inference(where, baseline)
    for assignment in uniform_schemes(where, ["W4A16-g128", "W8A8", "Q4_K"]).values():
        after = predict_inference(where, assignment)
        for step, name in ((decode_step(where.workload), "tpot_s"), (prefill_step(where.workload), "ttft_s")):
            found = gain_curve(where, assignment, baseline, step).at(0)
            assert found.value == pytest.approx(getattr(before, name).value / getattr(after, name).value)
            assert found.low <= found.value <= found.high


SCHEMES = ("W4A16-g128", "W8A16", "W8A8", "FP8", "Q4_K")
CASES = st.tuples(
    st.sampled_from(["h100", "a100", "t4", "rtx-4090", "ryzen-7950x"]),
    st.sampled_from(["", "trtllm", "vllm"]),
    st.sampled_from(["compiled", "eager"]),
    st.sampled_from([1, 16, 64, 256]),
    st.sampled_from([512, 4096, 32768]),
)


@settings(max_examples=25)
@given(CASES)
def test_advice_never_contradicts_the_prediction(case: tuple[str, str, str, int, int]) -> None:
    hw, library, engine, batch, prompt = case
    library = library if hw in ("h100", "a100") else ""
    where, baseline = placed(hw, Setting(batch, prompt, 256, library=library, engine=engine))
    before = predict_inference(where, baseline)
    for name, assignment in uniform_schemes(where, SCHEMES).items():
        after = predict_inference(where, assignment)
        decode, prefill = (getattr(before, x).value / getattr(after, x).value for x in ("tpot_s", "ttft_s"))
        for one in scheme_advice(where, assignment, baseline, name):
            check_against(one, decode, prefill, where, (assignment, baseline))


def check_against(
    one: Advice, decode: float, prefill: float, where: Deployment, both: tuple[Assignment, Assignment]
) -> None:
    """Compare one advice with the gains that the command prints beside it."""
    assert one.sentence.startswith((one.subject, "Stops paying"))
    assert all(number.low <= number.value <= number.high for number in one.numbers.values())
    if one.kind is AdviceKind.ONLY_SMALLER:
        assert max(decode, prefill) < STOPS_PAYING_GAIN
    if one.kind is AdviceKind.FASTER_ONLY_DECODE:
        assert prefill < STOPS_PAYING_GAIN <= decode
    if one.kind is AdviceKind.FASTER_ONLY_PREFILL:
        assert decode < STOPS_PAYING_GAIN <= prefill
    if one.kind is AdviceKind.SLOWER_DECODE:
        assert decode < 1
    if one.kind is AdviceKind.SLOWER_PREFILL:
        assert prefill < 1
    if one.kind is AdviceKind.STOPS_PAYING_BATCH:
        end = int(one.numbers["stops_paying_batch"].value)
        assert batch_gain(where, both, end - 1) >= STOPS_PAYING_GAIN > batch_gain(where, both, end)


def batch_gain(where: Deployment, both: tuple[Assignment, Assignment], batch: int) -> float:
    there = replace(where, workload=replace(where.workload, batch=batch))
    after, before = (predict_inference(there, assignment).tpot_s.value for assignment in both)
    return before / after


def host_case(batch: int, engine: str, factor: float = 1.0) -> tuple[Deployment, Assignment]:
    machine = round_hardware()
    memory = replace(machine.memory, bandwidth_bytes_per_s=machine.memory.bandwidth_bytes_per_s * factor)
    peaks = {name: rate * factor for name, rate in machine.peak_flop_per_s.items()}
    machine = replace(machine, memory=memory, peak_flop_per_s=peaks)
    where = deploy(machine, small_model(), Setting(batch, 100, 10, library="torch", engine=engine))
    return where, uniform_assignment(where, parse_scheme("BF16"))


def test_under_a_python_loop_no_scheme_is_faster() -> None:
    where, baseline = host_case(1, "eager")
    (told,) = host_advice(where, baseline)
    assert told.kind is AdviceKind.HOST_BOUND
    assert "Host-bound at batch 1" in told.sentence
    assert "no scheme is faster" in told.sentence
    for scheme in uniform_schemes(where, ["W4A16-g128", "W8A8", "W8A16", "NF4"]).values():
        assert gain_curve(where, scheme, baseline, decode_step(where.workload)).at(0).value <= 1.0


def test_a_compiled_engine_is_never_host_bound() -> None:
    assert host_advice(*host_case(1, "compiled")) == ()


def test_the_host_decides_up_to_the_batch_that_is_named() -> None:
    where, baseline = host_case(1, "eager")
    (told,) = host_advice(where, baseline)
    batch = int(told.numbers["device_bound_from_batch"].value)
    for there, waits in ((batch - 1, True), (batch, False)):
        parts = predict_inference(*host_case(there, "eager")).decode_parts
        assert (parts["host"].seconds.value > 0) is waits


@given(st.sampled_from([1, 64, 1024, 8192]), st.floats(1, 100))
def test_a_faster_device_stays_host_bound(batch: int, factor: float) -> None:
    slow, fast = (host_advice(*host_case(batch, "eager", each)) for each in (1.0, factor))
    assert len(fast) >= len(slow)


def test_a_kv_format_is_not_blamed_where_the_host_takes_longer() -> None:
    for engine, told in (("compiled", True), ("eager", False)):
        where, baseline = placed("h100", Setting(batch=1, prompt_tokens=256, library="vllm", engine=engine))
        fp8 = uniform_kv_formats(where, baseline)["fp8"]
        assert any("attention_gain" in one.numbers for one in kv_advice(where, fp8, baseline, "fp8")) is told


def test_noise_is_not_spoken_of() -> None:
    """A datasheet machine on which 4 bits are faster in both phases at every batch and short contexts."""
    machine = replace(round_hardware(), launch_overhead_s=1e-6)
    where = deploy(machine, small_model(), Setting(1, 100, 10, library="vllm"))
    baseline = uniform_assignment(where, parse_scheme("BF16"))
    eight = uniform_schemes(where, ["W8A8"])
    assert deployment_advice(where, baseline, eight, {}) == ()


def test_subjects_that_share_a_claim_are_named_together() -> None:
    numbers = [{"decode_gain": gain(x, x * 0.9, x * 1.1), "prefill_gain": gain(0.5, 0.4, 0.6)} for x in (0.8, 0.9)]
    advice = [
        advise(AdviceKind.ONLY_SMALLER, name, False, "at batch 96", one)
        for name, one in zip(("A", "B"), numbers, strict=True)
    ]
    assert advice[0].sentence == (
        "A: only smaller, not faster, at batch 96: per token 25 % slower (0.72x to 0.88x), "
        "first token 100 % slower (0.40x to 0.60x) (calibrated)."
    )
    assert sentences(advice) == [
        "A, B: only smaller, not faster, at batch 96: per token 11 to 25 % slower, "
        "first token 100 % slower (calibrated)."
    ]
    assert sentences([advice[0], replace(advice[1], probable=True)])[1].startswith("B: probably only smaller")


def test_only_what_is_new_at_a_batch_is_told() -> None:
    first = advise(AdviceKind.SLOWER_DECODE, "A", False, "at batch 1", {"decode_gain": gain(0.8, 0.7, 0.9)})
    again, sure = replace(first, condition="at batch 2"), replace(first, probable=True)
    assert news([[first], [again], [sure], [first]]) == [first, sure, first]


# Golden signs, from the measured tables.


@needs_measured
@pytest.mark.parametrize(
    ("file", "op", "column", "sizes"),
    [
        ("gemm_gpu", "gemm", "scheme", ["m", "n", "k"]),
        ("attention_gpu", "attention_decode", "kv_dtype", ["batch", "kv_tokens", "heads", "kv_heads", "head_dim"]),
        ("attention_gpu", "attention_prefill", "kv_dtype",
         ["batch", "q_tokens", "kv_tokens", "heads", "kv_heads", "head_dim"]),
    ],
)  # fmt: skip
def test_what_is_sure_was_measured_so(file: str, op: str, column: str, sizes: list[str]) -> None:
    """Signs that an interval supports are those of measured kernels, but for 2 %; probable ones but for 20 %."""
    rows = read_measured(MEASURED / f"{file}.parquet")
    rows = rows[rows["op"] == op].reset_index(drop=True)
    found = predict_table(kernel_columns(rows))
    rows = rows.assign(value=found.predicted_s, low=found.low_s, high=found.high_s)
    keys, sixteen = ["hw", "library", *sizes], rows[column] == "bfloat16"
    both = rows[~sixteen].merge(rows[sixteen], on=keys, suffixes=("", "_before")).dropna(subset=["value"])
    before, after = (kernel(both, ending) for ending in ("_before", ""))
    low, high = ratio_ends(before, after)
    predicted = before.predicted_s / after.predicted_s
    measured = (both["measured_s_before"] / both["measured_s"]).to_numpy()
    signs = [
        Prediction(*one, Origin.CALIBRATED) for one in zip(predicted, predicted * low, predicted * high, strict=True)
    ]
    how = np.array([max(belief(one, 1.0, 1), belief(one, 1.0, -1)) for one in signs])
    wrong = ((predicted > 1) != (measured > 1)) & (np.abs(measured - 1) > 0.05)
    assert (how == Belief.SURE).mean() > 0.3
    assert wrong[how == Belief.SURE].mean() < 0.02
    assert wrong[how == Belief.PROBABLE].mean() < 0.2


def kernel(rows: object, ending: str) -> KernelPrediction:
    value, low, high = (rows[name + ending].to_numpy() for name in ("value", "low", "high"))
    return KernelPrediction(KernelTime(value, value, value), value, low, high, Origin.CALIBRATED)


@needs_measured
@pytest.mark.parametrize("batch", [1, 64])
def test_fp8_cache_pays_from_the_measured_context_on(batch: int) -> None:
    """vLLM on H100, 32 heads over 8 KV heads of 128, as in Llama-3.1-8B: slower with fp8 up to some context."""
    rows = read_measured(MEASURED / "attention_gpu.parquet")
    alike = (rows["op"] == "attention_decode") & (rows["heads"] == 32) & (rows["kv_heads"] == 8)
    alike &= (rows["head_dim"] == 128) & (rows["batch"] == batch) & rows["library"].str.startswith("vllm")
    times = rows[alike & (rows["hw"] == "h100_sxm")].pivot_table("measured_s", "kv_tokens", "kv_dtype").dropna()
    faster = times.index[times["fp8"] < times["bfloat16"]]
    last_slower = max(times.index[times["fp8"] > times["bfloat16"]])
    assert last_slower < min(faster)
    where, baseline = placed("h100", Setting(batch=batch, library="vllm"))
    fp8 = uniform_kv_formats(where, baseline)["fp8"]
    found = crossing(kv_context_curve(where, fp8, baseline), context_points(where), 1.0, 1)
    assert found.earliest <= min(faster)
    assert found.latest >= last_slower
    assert last_slower / 2 <= found.value <= 2 * min(faster)


@needs_measured
def test_experts_in_per_tensor_fp8_are_slower_as_measured() -> None:
    """vLLM 0.24 on H100, the experts of Mixtral-8x7B: bf16 is more than twice as fast up to 64 tokens."""
    rows = read_measured(MEASURED / "moe_gpu.parquet")
    mixtral = (rows["experts"] == 8) & (rows["hidden"] == 4096) & (rows["tokens"] <= 64) & (rows["ep"] == 1)
    times = rows[mixtral & rows["library"].str.startswith("vllm")].pivot_table(
        "measured_s", ["tokens", "tp", "skew"], "scheme"
    )
    assert (times["fp8"] > 1.3 * times["bfloat16"]).all()
    where = deploy(
        codesign.load_hardware("h100"), codesign.load_model("mixtral-8x7b"), Setting(16, gpu_count=2, library="vllm")
    )
    (told,) = [one for one in predicted_advice(where, "FP8", "fp8") if one.kind is AdviceKind.ONLY_SMALLER]
    assert not told.probable
    assert told.numbers["decode_gain"].high < 1


@needs_measured
def test_four_bits_stop_paying_on_an_a100_where_measured() -> None:
    """TensorRT-LLM on A100: W4A16 gains most matrices at 16 rows, and has the median below 1.05 from 128 rows on."""
    rows = read_measured(MEASURED / "gemm_gpu.parquet")
    large = rows[(rows["hw"] == "a100_sxm") & (rows["n"] * rows["k"] >= 16e6)]
    times = large.pivot_table("measured_s", ["m", "n", "k"], "scheme").dropna(subset=["int4_wo"])
    gains = (times["bfloat16"] / times["int4_wo"]).groupby("m").median()
    assert gains[16] > 1.3
    assert (gains[gains.index >= 128] < STOPS_PAYING_GAIN).all()
    where, baseline = placed("a100", Setting(batch=16, prompt_tokens=512, library="trtllm"))
    four = uniform_schemes(where, ["W4A16-g128"])["W4A16-g128"]
    told = {one.kind: one for one in scheme_advice(where, four, baseline, "W4A16-g128")}
    assert AdviceKind.ONLY_SMALLER not in told
    ends = told[AdviceKind.STOPS_PAYING_BATCH].numbers["stops_paying_batch"]
    assert 48 <= ends.value <= 512
    assert ends.low <= 128 <= ends.high
