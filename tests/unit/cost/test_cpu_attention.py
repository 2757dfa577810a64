import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.cost.attention_time import AttentionShape, attention_work, kv_bytes
from codesign.cost.cpu_attention_time import cpu_attention_constants_problem, cpu_attention_seconds
from codesign.cost.fit import fit_frame
from codesign.cost.sheet import KernelSheet
from codesign.cost.sheet_file import read_sheet, sheet_yaml
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns
from codesign.hardware.file import load_hardware
from codesign.hardware.threads import with_threads

CPU = load_hardware("x86-avx512")
CONSTANTS = {"fixed_s": 5e-6, "bandwidth_fraction": 0.8, "query_elements_per_cycle": 8.0,
             "kv_elements_per_cycle": 30.0, "thread_fraction": 0.95, "overlap_exponent": 3.0}  # fmt: skip
SIZES = st.tuples(st.integers(1, 16), st.integers(1, 30_000), st.sampled_from([1, 2, 4, 8]), st.integers(1, 8))


def seconds(batch: int, tokens: int, kv_heads: int, group: int, threads: int = 8) -> float:
    sizes = (batch, 1, tokens, kv_heads * group, kv_heads, 128)
    shape = AttentionShape(*(np.array([float(size)]) for size in sizes))
    work = attention_work(with_threads(CPU, threads), "bf16", shape, np.array([512.0]))
    time = cpu_attention_seconds(CONSTANTS, work)
    assert time.predicted_s >= kv_bytes(work) / work.bytes_per_s
    return float(time.predicted_s[0])


@given(SIZES, SIZES)
def test_more_is_never_faster(one, other):
    assert seconds(*np.minimum(one, other)) <= seconds(*np.maximum(one, other)) * (1 + 1e-12)


@given(SIZES, st.integers(1, 7))
def test_another_thread_never_hurts_where_threads_work_well_together(sizes, threads):
    assert seconds(*sizes, threads=threads + 1) <= seconds(*sizes, threads=threads) * (1 + 1e-12)


def test_query_heads_of_a_group_share_the_unpacking():
    four_heads, one_head = seconds(1, 100_000, 1, 4), seconds(1, 100_000, 1, 1)
    assert one_head < four_heads < 4 * one_head


def test_constants_that_cannot_be_meant_are_named():
    assert cpu_attention_constants_problem(CONSTANTS) is None
    without = {name: value for name, value in CONSTANTS.items() if name != "fixed_s"}
    assert "missing fixed_s" in str(cpu_attention_constants_problem(without))
    assert "thread_fraction" in str(cpu_attention_constants_problem(CONSTANTS | {"thread_fraction": 2.0}))


def measured() -> pandas.DataFrame:
    """Return what a machine of those constants would measure, with 2 % noise."""
    cases = [
        (b, t, h, kv, n) for b in (1, 4) for t in (512, 4096, 16384) for h, kv in ((32, 8), (32, 32)) for n in (1, 8)
    ]
    rows = [
        {"hw": CPU.name, "library": "torch", "op": "attention_decode", "kv_dtype": "bf16", "batch": b, "q_tokens": 1,
         "kv_tokens": t, "heads": h, "kv_heads": kv, "head_dim": 128, "threads": n}
        for b, t, h, kv, n in cases
    ]  # fmt: skip
    exact = []
    for b, t, h, kv, n in cases:
        shape = AttentionShape(*(np.array([float(size)]) for size in (b, 1, t, h, kv, 128)))
        work = attention_work(with_threads(CPU, n), "bf16", shape, np.array([512.0]))
        exact.append(float(cpu_attention_seconds(CONSTANTS, work).predicted_s[0]))
    noise = np.random.default_rng(2).normal(1.0, 0.02, len(rows))
    return pandas.DataFrame(rows).assign(measured_s=np.array(exact) * noise).astype({"threads": float})


def test_a_sheet_fitted_to_a_cpu_predicts_its_attention(tmp_path):
    frame = measured()
    fit = fit_frame(frame, CPU)
    assert fit.refusals == ()
    assert fit.calibrations["attention_decode", "bf16-d128"].error_fraction < 0.08
    path = tmp_path / "sheet.yaml"
    path.write_text(sheet_yaml(KernelSheet(CPU.name, "torch", "2.13.0", "2026-11-21", "a test", fit.calibrations)))
    predicted = predict_table(kernel_columns(frame), (read_sheet(path),))
    assert np.mean(np.abs(predicted.predicted_s / frame["measured_s"] - 1)) < 0.04
    assert set(predicted.origin) == {"calibrated"}


def test_too_few_points_are_refused():
    refusal = fit_frame(measured().head(4), CPU).refusals[0]
    assert "too few" in refusal.reason


@pytest.mark.parametrize("unit", [1e6, 1e-12])
def test_times_in_another_unit_are_refused(unit):
    frame = measured()
    assert "seconds" in fit_frame(frame.assign(measured_s=frame["measured_s"] * unit), CPU).refusals[0].reason


def prompts(tile: float) -> pandas.DataFrame:
    """Return prompts as a machine would measure them that computes tiles of queries whole, with 2 % noise."""
    sizes = [(b, t, h) for b in (1, 2) for t in (32, 64, 96, 128, 256, 512) for h in (8, 32)]
    batch, tokens, heads = np.array(sizes, dtype=float).T
    shape = AttentionShape(batch, tokens, tokens, heads, heads, np.full(len(sizes), 64.0))
    work = attention_work(with_threads(CPU, 1), "bf16", shape, np.full(len(sizes), 256.0))
    exact = cpu_attention_seconds(CONSTANTS | {"query_tile": tile}, work).predicted_s
    return pandas.DataFrame(
        {"hw": CPU.name, "library": "torch", "op": "attention_prefill", "kv_dtype": "bf16", "batch": batch,
         "q_tokens": tokens, "kv_tokens": tokens, "heads": heads, "kv_heads": heads, "head_dim": 64, "threads": 1.0,
         "measured_s": exact * np.random.default_rng(3).normal(1.0, 0.02, len(sizes))}
    )  # fmt: skip


@pytest.mark.parametrize("tile", [1.0, 32.0])
def test_the_tile_of_queries_is_found_in_prompts(tile):
    found = fit_frame(prompts(tile), CPU).calibrations["attention_prefill", "bf16-d64"]
    assert found.constants["query_tile"] == tile
    assert found.error_fraction < 0.06
