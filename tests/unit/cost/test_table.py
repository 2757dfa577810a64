"""Tables of kernels and servers: aliases, reasons instead of guesses, agreement with single predictions."""

import numpy as np
import pandas as pd
import pytest

import codesign
from codesign.cost.arrays import as_floats
from codesign.cost.deployment import deploy, kv_format, uniform_assignment
from codesign.cost.kernels import gemm
from codesign.cost.serving import predict_serving
from codesign.cost.table import predict_table
from codesign.cost.table_file import predict_kernel_file, predict_serving_file, read_table
from codesign.cost.target import Target
from codesign.errors import CapabilityError, InputError
from codesign.schemes.catalog import parse_scheme

NUMBERS = ("m", "n", "k", "batch", "q_tokens", "kv_tokens", "heads", "kv_heads", "head_dim", "tokens", "hidden",
           "intermediate", "experts", "top_k", "tp", "ep", "skew", "gpus", "message_bytes")  # fmt: skip
GEMM = {"hw": "a100_sxm", "library": "trtllm-1.0.0", "op": "gemm", "scheme": "int4_wo", "m": 16, "n": 4096, "k": 4096}
ATTENTION = {"hw": "h100", "op": "attention_decode", "batch": 8, "q_tokens": 1, "kv_tokens": 4096, "heads": 32,
             "kv_heads": 8, "head_dim": 128}  # fmt: skip
MOE = {"hw": "h100_sxm", "op": "moe", "scheme": "bfloat16", "tokens": 64, "hidden": 4096, "intermediate": 14336,
       "experts": 8, "top_k": 2}  # fmt: skip
ALL_REDUCE = {"hw": "a100", "op": "all_reduce", "gpus": 8, "message_bytes": 2**20}


def predicted(*rows):
    """Return the prediction of rows given as dicts."""
    columns = {name: np.array([row.get(name, "") for row in rows], dtype=object)
               for name in ("hw", "library", "op", "scheme", "kv_dtype")}  # fmt: skip
    columns |= {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in NUMBERS}
    return predict_table(columns)


def test_measured_spellings_are_accepted_and_agree_with_single_predictions():
    target = Target(codesign.load_hardware("a100-sxm-80gb"), "trtllm")
    one = gemm(target, parse_scheme("W4A16-g128"), as_floats(16), as_floats(4096), as_floats(4096))
    table = predicted(GEMM)
    assert table.predicted_s[0] == float(one.predicted_s)
    assert (table.origin[0], table.reason[0]) == ("calibrated", "")
    assert table.bound[0] == str(one.time.bound)


def test_every_operation_is_predicted_with_an_interval():
    table = predicted(GEMM, ATTENTION, ATTENTION | {"op": "attention_prefill", "q_tokens": 4096}, MOE, ALL_REDUCE)
    assert (table.reason == "").all()
    assert (table.low_s <= table.predicted_s).all()
    assert (table.predicted_s <= table.high_s).all()


def test_the_order_of_rows_does_not_matter():
    rows = [GEMM, MOE, GEMM | {"m": 1}, ATTENTION, GEMM | {"scheme": "sq"}]
    forward, backward = predicted(*rows), predicted(*reversed(rows))
    assert forward.predicted_s.tolist() == backward.predicted_s[::-1].tolist()


def test_empty_cells_mean_the_default():
    assert predicted(MOE).predicted_s[0] == predicted(MOE | {"tp": 1, "ep": 1, "skew": 0}).predicted_s[0]
    bf16 = predicted(ATTENTION | {"kv_dtype": "bfloat16", "library": "vllm"})
    assert predicted(ATTENTION).predicted_s[0] == bf16.predicted_s[0]


def test_parallel_experts_are_faster():
    whole = predicted(MOE).predicted_s[0]
    assert predicted(MOE | {"tp": 2}).predicted_s[0] < whole
    assert predicted(MOE | {"ep": 4}).predicted_s[0] < whole
    assert predicted(MOE | {"tokens": 4, "skew": 1.2}).predicted_s[0] < predicted(MOE | {"tokens": 4}).predicted_s[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (GEMM | {"m": 0}, "m must be a number from 1"),
        (GEMM | {"n": np.nan}, "n must be a number"),
        (GEMM | {"k": np.inf}, "k must be a number"),
        (GEMM | {"k": 4100}, "4100"),
        (GEMM | {"op": "gem"}, 'Did you mean "gemm"?'),
        (GEMM | {"hw": "a1000"}, 'Did you mean "a100"?'),
        (GEMM | {"scheme": "fp7"}, "Unknown scheme"),
        (GEMM | {"library": "vlm"}, 'Did you mean "vllm"?'),
        (GEMM | {"scheme": "W4A4"}, "does not run on a100-sxm-80gb"),
        (ATTENTION | {"kv_heads": 64}, "kv_heads must not exceed heads"),
        (ATTENTION | {"q_tokens": 5000}, "q_tokens must not exceed kv_tokens"),
        (ATTENTION | {"kv_dtype": "fp9"}, "Unknown KV cache format"),
        (MOE | {"top_k": 9}, "top_k must not exceed experts"),
        (MOE | {"skew": -1}, "skew must be a number from 0"),
        (ALL_REDUCE | {"hw": "raspberry-pi-4"}, "no link to peers"),
    ],
)
def test_what_cannot_be_predicted_gets_a_reason_and_no_number(row, reason):
    table = predicted(row, GEMM)
    assert reason in table.reason[0]
    assert np.isnan(table.predicted_s[0])
    assert (table.bound[0], table.origin[0]) == ("", "")
    assert table.reason[1] == ""


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_kernel_files_keep_their_columns_and_gain_the_results(tmp_path, ending):
    frame = pd.DataFrame([GEMM | {"note": "a"}, GEMM | {"m": -1, "note": "b"}])
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    frame.to_csv(source, index=False) if ending == "csv" else frame.to_parquet(source)
    predict_kernel_file(str(source), target)
    result = pd.read_csv(target) if ending == "csv" else pd.read_parquet(target)
    assert list(result["note"]) == ["a", "b"]
    assert result["predicted_s"][0] > 0
    assert np.isnan(result["predicted_s"][1])
    assert "m must be" in result["reason"][1]


SERVER = {"hw": "h100_sxm", "gpus": 2, "model": "Qwen/Qwen3-32B", "scheme": "bfloat16", "kv_dtype": "",
          "library": "sglang", "concurrency": 16, "prompt_tokens": 1024, "output_tokens": 128}  # fmt: skip


def test_serving_files(tmp_path):
    rows = [SERVER, SERVER | {"gpus": 1, "model": "llama-2-70b"}, SERVER | {"model": "gpt-99"},
            SERVER | {"output_tokens": ""}, SERVER | {"kv_dtype": "int8"}, SERVER]  # fmt: skip
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame(rows).to_csv(source, index=False)
    predict_serving_file(str(source), target)
    result = pd.read_csv(target, keep_default_na=False)
    assert result["ttft_s"][0] == result["ttft_s"][5] != ""
    for name in ("ttft_s", "tpot_s", "tokens_per_s", "memory_bytes"):
        low, value, high = (float(result[f"{name}{end}"][0]) for end in ("_low", "", "_high"))
        assert low <= value <= high
    reasons = ("", "does not fit", "No model is called", "output_tokens must be", "no int8 KV cache")
    for i, words in enumerate(reasons):
        assert words in result["reason"][i]
        assert (result["tpot_s"][i] == "") == (words != "")


def serving(concurrency: int):
    setting = codesign.Setting(batch=concurrency, prompt_tokens=1024, output_tokens=128)
    where = deploy(codesign.load_hardware("a100"), codesign.load_model("llama-2-7b"), setting)
    return predict_serving(where, uniform_assignment(where, parse_scheme("BF16")))


def test_more_requests_in_flight_are_slower_each_and_faster_together():
    few, many = serving(2), serving(32)
    assert few.tpot_s.value < many.tpot_s.value
    assert few.ttft_s.value < many.ttft_s.value
    assert few.tokens_per_s.value < many.tokens_per_s.value


def test_requests_beyond_the_memory_wait():
    limit = serving(10_000).in_flight
    assert limit < 10_000
    full, over = serving(limit), serving(2 * limit)
    assert over.in_flight == limit
    assert over.tpot_s == full.tpot_s
    cycle_s = full.tpot_s.value * 128
    assert over.ttft_s.value == pytest.approx(full.ttft_s.value + cycle_s, rel=1e-6)


def test_a_kv_format_that_the_library_lacks_is_refused():
    target = Target(codesign.load_hardware("a100"), "vllm")
    assert kv_format(target).name == "bf16"
    assert kv_format(target, "fp16").name == "fp16"
    with pytest.raises(CapabilityError, match="vllm has no int8 KV cache"):
        kv_format(target, "int8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "cannot read this as CSV"),
        ("a.csv", b"hw,op\n\xff\xfe", "cannot read this as CSV"),
        ("a.parquet", b"PAR1 nonsense", "cannot read this as Parquet"),
        ("a.csv", b'hw,op\n"a', "cannot read this as CSV"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(str(tmp_path / name))


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(str(tmp_path / "absent.csv"))
    (tmp_path / "a.csv").write_text("hwx,op\na100,gemm\n")
    with pytest.raises(InputError, match=r'"hw" is missing\. Did you mean "hwx"'):
        predict_kernel_file(str(tmp_path / "a.csv"), None)
