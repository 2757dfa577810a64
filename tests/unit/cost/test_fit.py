"""Fitting whole tables: what is fitted under which key, from which rows, and what is refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from attention_constants import DECODE
from machines import round_hardware

from codesign.cost.attention_time import AttentionShape, attention_work, decode_seconds
from codesign.cost.fit import errors_before, fit_frame, select_rows, split_library
from codesign.cost.gemm_time import gemm_seconds
from codesign.errors import InputError
from codesign.schemes.catalog import parse_scheme

MACHINE = replace(round_hardware(), aliases=("my-gpu",))
TRUTH = {
    "fixed_s": 6e-6,
    "bandwidth_fraction": 0.7,
    "compute_fraction": 0.75,
    "k_latency_cycles": 1.0,
    "load_bytes_per_cycle": 300.0,
    "tile_overhead_s": 1e-6,
    "wave_fraction": 0.3,
    "split_s": 3e-6,
    "overlap_exponent": 3.0,
}
EMPTY = dict.fromkeys(("m", "n", "k", "gpus", "message_bytes"), np.nan)


def gemm_frame(scheme: str = "BF16", count: int = 48, noise: float = 0.02, seed: int = 3) -> pd.DataFrame:
    """Return multiplications at random shapes, timed by the formula with TRUTH."""
    rng = np.random.default_rng(seed)
    m = rng.choice([1.0, 8, 32, 64, 128, 512, 2048, 8192], count)
    n, k = rng.choice([512.0, 1024, 2048, 4096, 8192, 12288], (2, count))
    constants = {**TRUTH, **({"dequantized_weights_per_cycle": 300.0} if parse_scheme(scheme).weight_only else {})}
    seconds = gemm_seconds(constants, MACHINE, parse_scheme(scheme), m, n, k).predicted_s
    seconds = seconds * np.exp(rng.normal(0, noise, count))
    texts = {"hw": "my_gpu", "library": "vllm-0.9.1", "op": "gemm", "scheme": scheme, "kv_dtype": ""}
    return pd.DataFrame({**texts, "m": m, "n": n, "k": k, "measured_s": seconds})


def decode_frame(head_dim: float) -> pd.DataFrame:
    """Return decode attention timed by the formula."""
    rng = np.random.default_rng(int(head_dim))
    batch, kv_tokens = rng.choice([1.0, 4, 16, 64], 60), rng.choice([256.0, 1024, 4096, 16384], 60)
    heads = rng.choice([16.0, 32, 64], 60)
    one = np.ones(60)
    shape = AttentionShape(batch, one, kv_tokens, heads, 8 * one, head_dim * one)
    work = attention_work(MACHINE, "bf16", shape, 4.0 * shape.head_dim)
    seconds = decode_seconds({**DECODE, "regroup_s": 1e-7}, work).predicted_s
    sizes = {"batch": batch, "q_tokens": 1.0, "kv_tokens": kv_tokens, "heads": heads, "kv_heads": 8.0}
    texts = {"hw": "my-gpu", "library": "", "op": "attention_decode", "scheme": "", "kv_dtype": "bf16"}
    return pd.DataFrame({**texts, **sizes, "head_dim": head_dim, "measured_s": seconds})


def collective_frame(library: str = "vllm") -> pd.DataFrame:
    message = np.tile(2.0 ** np.arange(10, 28), 2)
    gpus = np.repeat([2.0, 8.0], 18)
    seconds = 1e-5 + 1e-6 * gpus + 2 * (gpus - 1) / gpus * message / 250e9
    texts = {"hw": "round", "library": library, "op": "all_reduce", "scheme": "", "kv_dtype": ""}
    return pd.DataFrame({**texts, "gpus": gpus, "message_bytes": message, "measured_s": seconds})


@pytest.fixture(scope="module")
def mixed():
    """Return the fit of several operations with rows that cannot be fitted between them."""
    strange = gemm_frame(count=3).assign(op="conv")
    frames = [gemm_frame(), decode_frame(128.0), decode_frame(96.0), collective_frame(), strange,
              gemm_frame("W4A16-g128", 5), gemm_frame(count=20).assign(scheme="W9A99")]  # fmt: skip
    return fit_frame(pd.concat(frames, ignore_index=True), MACHINE)


def errors(calibration, frame: pd.DataFrame) -> np.ndarray:
    m, n, k, measured_s = (frame[name].to_numpy(float) for name in ("m", "n", "k", "measured_s"))
    return np.abs(
        gemm_seconds(calibration.constants, MACHINE, parse_scheme("BF16"), m, n, k).predicted_s / measured_s - 1
    )


def test_every_operation_is_fitted_on_its_own(mixed):
    assert set(mixed.calibrations) == {
        ("gemm", "BF16"),
        ("attention_decode", "bf16-d128"),
        ("attention_decode", "bf16-d96"),
        ("all_reduce", "any"),
    }
    assert all(one.error_fraction < 0.06 for one in mixed.calibrations.values())
    assert [len(rows) for rows in mixed.rows.values()] == [one.sample_count for one in mixed.calibrations.values()]


def test_what_is_not_fitted_has_a_reason_and_stops_nothing_else(mixed):
    reasons = {(one.operation, one.scheme): (one.row_count, one.reason) for one in mixed.refusals}
    assert set(reasons) == {("conv", ""), ("gemm", "W4A16-g128"), ("gemm", "W9A99")}
    assert "nothing fits this operation" in reasons["conv", ""][1]
    assert reasons["gemm", "W4A16-g128"] == (5, "5 points are too few to fit a multiplication; measure at least 12.")
    assert "W9A99" in reasons["gemm", "W9A99"][1]


def test_the_order_of_the_rows_does_not_matter():
    frame = gemm_frame()
    shuffled = frame.sample(frac=1.0, random_state=2).reset_index(drop=True)
    assert fit_frame(shuffled, MACHINE).calibrations == fit_frame(frame, MACHINE).calibrations


def test_a_few_wild_rows_change_little():
    """5 % of the rows are ten times too slow; the error on other rows hardly grows."""
    frame, unseen = gemm_frame(count=200), gemm_frame(count=300, noise=0.0, seed=9)
    wild = frame.assign(measured_s=frame["measured_s"].where(np.arange(200) % 20 != 7, frame["measured_s"] * 10))
    clean_error, wild_error = (
        errors(fit_frame(one, MACHINE).calibrations["gemm", "BF16"], unseen).mean() for one in (frame, wild)
    )
    assert clean_error < 0.03
    assert wild_error < clean_error + 0.02


def test_rows_that_contradict_themselves_are_left_out():
    frame = decode_frame(64.0)
    frame.loc[:4, "kv_heads"] = 128.0
    fit = fit_frame(frame, MACHINE)
    assert fit.calibrations["attention_decode", "bf16-d64"].sample_count == 55
    assert [(one.row_count, one.reason) for one in fit.refusals] == [(5, "kv_heads must not exceed heads.")]


def test_schemes_of_one_key_are_not_mixed():
    """Sheets hold W4A16-g64 as W4A16-g128: rows of that name win, else those of which there are most."""
    small, large = gemm_frame("W4A16-g128", 30), gemm_frame("W4A16-g64", 40)
    both = fit_frame(pd.concat([large, small], ignore_index=True), MACHINE)
    assert both.calibrations["gemm", "W4A16-g128"].sample_count == 30
    assert [(one.scheme, one.row_count) for one in both.refusals] == [("W4A16-g64", 40)]
    alone = fit_frame(large, MACHINE)
    assert alone.calibrations["gemm", "W4A16-g128"].sample_count == 40


def test_impossible_attention_is_refused():
    fit = fit_frame(decode_frame(64.0).assign(kv_tokens=65536.0, measured_s=1e-6), MACHINE)
    assert not fit.calibrations
    assert "memory allows" in fit.refusals[0].reason


def test_a_frame_without_rows_fits_nothing():
    fit = fit_frame(gemm_frame().iloc[:0], MACHINE)
    assert (dict(fit.calibrations), fit.refusals) == ({}, ())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vllm", ("vllm", "")),
        ("vLLM-0.24.0", ("vllm", "0.24.0")),
        ("trtllm-1.3.0rc20", ("trtllm", "1.3.0rc20")),
        ("llama.cpp-b4000", ("llama.cpp", "4000")),
        ("nccl-2.27.3", ("nccl", "2.27.3")),
    ],
)
def test_libraries_and_their_versions(text, found):
    assert split_library(text) == found


@pytest.mark.parametrize(("text", "words"), [("", "name the library"), ("vlm", 'Did you mean "vllm"')])
def test_a_library_has_to_be_known(text, words):
    with pytest.raises(InputError, match=words):
        split_library(text)


def test_rows_of_other_machines_and_libraries_are_counted():
    frame = pd.concat(
        [gemm_frame(), gemm_frame(count=7).assign(hw="h100"), gemm_frame(count=5).assign(library="trtllm")]
    )
    selection = select_rows(frame, MACHINE, "vllm")
    assert (len(selection.frame), selection.other_count) == (48, 12)
    assert (selection.library, selection.library_version) == ("vllm", "0.9.1")


def test_rows_that_name_neither_machine_nor_library_are_of_those_asked_for():
    selection = select_rows(gemm_frame().assign(hw="", library=""), MACHINE, "sglang-0.5")
    assert (len(selection.frame), selection.library, selection.library_version) == (48, "sglang", "0.5")
    assert select_rows(decode_frame(64.0), MACHINE, "vllm").library_version == "unknown"


def test_versions_are_not_mixed():
    frame = pd.concat([gemm_frame(), gemm_frame(count=9).assign(library="vllm-0.10")])
    with pytest.raises(InputError, match=r"several versions: name one, such as vllm-0\.9\.1"):
        select_rows(frame, MACHINE, "vllm")
    assert len(select_rows(frame, MACHINE, "vllm-0.10").frame) == 9


def test_a_table_of_other_machines_says_what_it_has():
    with pytest.raises(InputError, match=r"no rows of vllm on round; it has h100 with vllm-0\.9\.1"):
        select_rows(gemm_frame().assign(hw="h100"), MACHINE, "vllm")


def test_the_error_before_is_that_of_the_shipped_model():
    frame = gemm_frame().assign(hw="a100", library="trtllm")
    a100 = replace(MACHINE, name="a100-sxm-80gb")
    selection = select_rows(frame, a100, "trtllm")
    before = errors_before(fit_frame(selection.frame, a100), selection, "a100")
    assert before["gemm", "BF16"].row_count == 48
    assert before["gemm", "BF16"].mape_fraction > 0.05
