import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from codesign.cli.validate import command
from codesign.cost import measured as measured_module
from codesign.cost.measured import line_numbers, read_measured, read_measured_table
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns, predict_servers
from codesign.cost.validate import (
    intensity_flop_per_byte,
    kernel_rows,
    predict_figures,
    predict_measured,
    statistics,
    validate,
    validate_table,
)
from codesign.errors import GateError, InputError

ROWS = pd.DataFrame(
    {
        "hw": ["a100", "a100", "h100", "h100"],
        "library": "vllm",
        "op": "gemm",
        "scheme": ["bfloat16", "int4_wo", "bfloat16", "fp8"],
        "m": [1, 16, 256, 4096],
        "n": 4096,
        "k": 4096,
    }
)
RUNS = pd.DataFrame(
    {
        "hw": "h100",
        "library": "vllm",
        "model": "llama-7b",
        "scheme": ["BF16", "FP8"],
        "concurrency": [1, 64],
        "prompt_tokens": 512,
        "output_tokens": 128,
    }
)


def measured(factor):
    """Return the rows with what we predict, times a factor, as measurement."""
    return ROWS.assign(measured_s=predict_table(kernel_columns(ROWS)).predicted_s * factor)


def compared(frame):
    """Return the statistics of a table of kernels."""
    return validate("kernel_s", predict_measured(frame))


def measured_runs(tpot_factor, ttft_factor):
    """Return the runs with what we predict, times factors, as measurement."""
    served = predict_servers(RUNS)
    return RUNS.assign(measured_tpot_s=served["tpot_s"] * tpot_factor, measured_ttft_s=served["ttft_s"] * ttft_factor)


def write(tmp_path, frame):
    path = tmp_path / "measured.csv"
    frame.to_csv(path, index=False)
    return path


def rejected(tmp_path, frame):
    """Return the reasons with their lines."""
    return {one.reason: one.lines for one in read_measured_table(write(tmp_path, frame)).rejections}


def test_a_perfect_prediction_has_no_error():
    whole = compared(measured(1.0)).whole
    assert (whole.row_count, whole.mape_fraction, whole.bias_fraction) == (4, 0.0, pytest.approx(0.0))
    assert whole.coverage_fraction == 1.0


def test_half_the_time_predicted_is_half_an_error_and_a_bias():
    whole = compared(measured(2.0)).whole
    assert whole.mape_fraction == pytest.approx(0.5)
    assert whole.bias_fraction == pytest.approx(-0.5)


def test_coverage_counts_what_lies_inside_the_interval():
    frame = pd.DataFrame({"measured_s": [1.0, 3.0], "low_s": 0.5, "high_s": 2.0, "predicted_s": 1.0,
                          "error_fraction": [0.0, -2 / 3]})  # fmt: skip
    found = statistics("x", frame)
    assert (found.coverage_fraction, found.median_fraction) == (0.5, pytest.approx(1 / 3))


def test_rows_are_divided_and_those_without_prediction_are_counted():
    frame = pd.concat([measured(1.5), measured(1.5).head(1).assign(hw="a1000")], ignore_index=True)
    found = compared(frame.assign(line=range(5)))
    assert [row.label for row in found.divisions["hw"]] == ["a100", "h100"]
    assert [row.label for row in found.divisions["row_class"]] == ["1", "2-16", "129-1,024", "above 1,024"]
    assert sum(row.row_count for row in found.divisions["scheme"]) == 4
    assert sum(found.unpredicted.values()) == 1
    assert sum(found.origins.values()) == 4
    assert len(found.worst) == 4


def test_the_worst_row_is_that_with_the_largest_ratio_either_way():
    frame = measured(1.0)
    frame["measured_s"] *= [1.0, 8.0, 0.25, 1.5]
    assert [row["m"] for row in compared(frame).worst] == [16, 256, 4096, 1]


def test_rare_values_of_a_division_are_pooled():
    frame = pd.concat([measured(1.0).iloc[[0, 0]]] * 30, ignore_index=True)
    frame["library"] = [f"vllm-0.{i}" for i in range(58)] + ["vllm", "vllm"]
    parts = compared(frame).divisions["library"]
    assert len(parts) == 41
    assert (parts[-1].label, parts[-1].row_count) == ("all others", 60 - 41)


def test_nothing_to_predict_is_an_empty_validation():
    found = compared(measured(1.0).assign(hw="a1000"))
    assert (found.whole, found.divisions, found.worst) == (None, {}, ())
    assert sum(found.unpredicted.values()) == 4


def test_intensity_is_flop_per_byte_read_and_written():
    """By hand: bf16 m=1, n=k=4096: 2 m n k / (2 n k + 2 m k + 2 m n)."""
    attention = {"op": "attention_decode", "batch": 4, "q_tokens": 1, "kv_tokens": 1000, "heads": 32, "kv_heads": 8,
                 "head_dim": 128, "kv_dtype": "bf16"}  # fmt: skip
    reduce = {"op": "all_reduce", "gpus": 8, "message_bytes": 1024}
    frame = pd.concat([ROWS.head(1), pd.DataFrame([attention, reduce])], ignore_index=True)
    found = intensity_flop_per_byte(frame)
    assert found[0] == pytest.approx(2 * 4096**2 / (2 * 4096**2 + 4 * 4096))
    assert found[1] == pytest.approx(4 * 32 * 128 * 1000 / (1000 * 2 * 8 * 128 * 2 + 2 * 32 * 128 * 2))
    assert np.isnan(found[2])
    np.testing.assert_array_equal(kernel_rows(frame), [1, 4, np.nan])


def test_intensity_of_experts_grows_with_their_rows():
    row = {"op": "moe", "scheme": "bf16", "hidden": 4096, "intermediate": 14336, "experts": 8, "top_k": 2, "skew": 1.2}
    frame = pd.DataFrame([row | {"tokens": tokens, "tp": tp} for tokens, tp in ((1, 1), (4096, 1), (4096, 4))])
    low, high, split = intensity_flop_per_byte(frame)
    assert low == pytest.approx(1.0, rel=0.01)
    assert high > split > 100


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("measured_s", "-1", "measured_s is not above zero"),
        ("measured_s", "0", "measured_s is not above zero"),
        ("measured_s", "", "measured_s is empty"),
        ("measured_s", "nan", "measured_s is NaN"),
        ("measured_s", "inf", "measured_s is infinite"),
        ("measured_s", "1e300", "measured_s is out of range"),
        ("measured_s", "5e-324", "measured_s is out of range"),
        ("measured_s", "fast", "measured_s is not a number"),
        ("m", "-4", "m is not above zero"),
        ("m", "-inf", "m is infinite"),
        ("k", "many", "k is not a number"),
        ("format_version", "0", "format_version is not 1"),
        ("format_version", "one", "format_version is not 1"),
    ],
)
def test_a_row_that_cannot_be_meant_is_rejected_with_its_line(column, value, reason, tmp_path):
    frame = measured(1.0).assign(format_version=1).astype(object)
    frame.loc[2, column] = value
    table = read_measured_table(write(tmp_path, frame))
    assert [(one.reason, one.lines) for one in table.rejections] == [(reason, (4,))]
    assert (table.row_count, table.frame["m"].tolist()) == (4, [1, 16, 4096])


def test_a_later_row_with_a_used_id_is_rejected(tmp_path):
    frame = measured(1.0).assign(id=["a", "a", "a", ""])
    frame.loc[0, "measured_s"] = -1
    assert rejected(tmp_path, frame) == {"measured_s is not above zero": (2,), "id was used by an earlier row": (4,)}


def test_optional_sizes_may_be_empty_but_not_wrong(tmp_path):
    row = {"hw": "h100", "library": "vllm", "op": "moe", "scheme": "bf16", "tokens": 16, "hidden": 4096,
           "intermediate": 14336, "experts": 8, "top_k": 2, "measured_s": 1e-3}  # fmt: skip
    values = ["", "0", "balanced", "power_law_1.2", "odd", "-1"]
    frame = pd.DataFrame([row | {"skew": value} for value in values])
    assert rejected(tmp_path, frame) == {"skew is not a number": (6,), "skew is not above zero": (7,)}


def test_a_newer_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="newer than 1"):
        read_measured_table(write(tmp_path, measured(1.0).assign(format_version=[1, 1, 2, 1])))


def test_lines_are_those_of_the_file_also_with_breaks_inside_cells(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('\nhw,note\na100,"one\ntwo\nthree"\n\n  \nh100,x\n')
    assert line_numbers(path, 2) == [3, 8]
    assert line_numbers(tmp_path / "x.parquet", 2) == [1, 2]


def test_lines_are_counted_where_a_cell_is_beyond_the_reader(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("hw,note\na100," + "x" * 200_000 + "\n")
    assert line_numbers(path, 1) == [2]


def test_a_file_that_is_too_large_is_refused_before_reading(tmp_path, monkeypatch):
    path = tmp_path / "huge.csv"
    with path.open("wb") as stream:
        stream.truncate(2 * 2**30)

    def never(_source):
        raise AssertionError("the file was read")

    monkeypatch.setattr(measured_module, "read_table", never)
    for name in ("huge.csv", "huge.parquet"):
        path.rename(tmp_path / name)
        path = tmp_path / name
        with pytest.raises(InputError, match=r"2,147,483,648 bytes; a measured table may have 134,217,728"):
            read_measured_table(path)


def test_what_would_grow_in_memory_is_refused(tmp_path, monkeypatch):
    packed = tmp_path / "measured.csv.gz"
    packed.write_bytes(b"x")
    with pytest.raises(InputError, match="unpack it first"):
        read_measured_table(packed)
    wide = tmp_path / "wide.csv"
    wide.write_text("m," * 40_000)
    with pytest.raises(InputError, match="first line is longer"):
        read_measured_table(wide)
    monkeypatch.setattr(measured_module, "ROWS_MAX", 3)
    with pytest.raises(InputError, match="4 rows; a measured table may have 3"):
        read_measured_table(write(tmp_path, measured(1.0)))
    monkeypatch.setattr(measured_module, "PARQUET_CELLS_MAX", 10)
    long = tmp_path / "long.parquet"
    measured(1.0).to_parquet(long)
    with pytest.raises(InputError, match="4 rows of 8 columns are too many"):
        read_measured_table(long)


def test_parquet_of_odd_types_is_rejected_row_by_row(tmp_path):
    frame = measured(1.0).assign(m=[True, False, True, True])
    path = tmp_path / "odd.parquet"
    frame.to_parquet(path)
    assert [one.reason for one in read_measured_table(path).rejections] == ["m is not a number"]
    frame.assign(m=[[1], [2], [3], None]).to_parquet(path)
    assert {one.reason: one.lines for one in read_measured_table(path).rejections} == {
        "m is not a number": (1, 2, 3),
        "m is empty": (4,),
    }
    frame.assign(m=pd.to_datetime("2026-01-01")).to_parquet(path)
    assert len(read_measured_table(path).frame) == 0


def test_the_layout_of_aiconfigurator_is_read(tmp_path):
    attention = {"batch_size": 8, "q_len": 1, "kv_len_before": 4095, "num_heads": 32, "num_key_value_heads": 8,
                 "head_dim": 128, "kv_cache_dtype": "fp8", "latency_ms": 0.5, "hw": "h100_sxm", "engine": "vllm-0.24.0",
                 "phase": "decode"}  # fmt: skip
    row = read_measured(write(tmp_path, pd.DataFrame([attention]))).iloc[0]
    assert (row["op"], row["library"], row["kv_tokens"]) == ("attention_decode", "vllm-0.24.0", 4096)
    assert row["measured_s"] == pytest.approx(5e-4)
    reduce = {"op": ["all_reduce", "all_gather"], "dtype": "half", "num_gpus": 8, "message_elements_or_bytes": 1024,
              "latency_ms": 0.02, "hw": "a100_sxm", "engine": ["custom-vllm-0.14.0", "nccl-2.27.3"]}  # fmt: skip
    frame = read_measured(write(tmp_path, pd.DataFrame(reduce)))
    assert frame["message_bytes"].tolist() == [2048, 2048]
    assert frame["library"].tolist() == ["vllm-0.14.0", "nccl-2.27.3"]
    assert predict_measured(frame)["reason"].tolist() == ["", ""]


def test_faults_are_told_by_the_names_in_the_file(tmp_path):
    frame = pd.DataFrame({"num_tokens": ["x", 1, 1], "hidden_size": 64, "inter_size": 64, "num_experts": [8, 8, -8],
                          "topk": 2, "latency_ms": [1, "slow", 1], "scheme": "fp8", "hw": "h100"})  # fmt: skip
    assert rejected(tmp_path, frame) == {
        "num_tokens is not a number": (2,),
        "latency_ms is not a number": (3,),
        "num_experts is not above zero": (4,),
    }


def test_columns_here_do_not_collide_with_those_of_a_layout(tmp_path):
    frame = pd.DataFrame({"num_tokens": [4], "tokens": 5, "hidden_size": 64, "inter_size": 64, "num_experts": 8,
                          "topk": 2, "latency_ms": 1, "scheme": "fp8", "hw": "h100", "line": 9})  # fmt: skip
    row = read_measured(write(tmp_path, frame)).iloc[0]
    assert (row["tokens"], row["line"]) == (4, 2)


def test_runs_of_servers_are_compared_figure_by_figure(tmp_path):
    frame = measured_runs(1.0, 2.0)
    frame.loc[1, "measured_ttft_s"] = np.nan
    table = read_measured_table(write(tmp_path, frame))
    found = validate_table(table, predict_figures(table))
    assert (table.kind, [one.figure for one in found.figures]) == ("servers", ["tpot_s", "ttft_s"])
    tpot, ttft = (one.whole for one in found.figures)
    assert (tpot.row_count, tpot.mape_fraction) == (2, pytest.approx(0.0))
    assert (ttft.row_count, ttft.mape_fraction) == (1, pytest.approx(0.5))
    assert [one.label for one in found.figures[0].divisions["flight_class"]] == ["1", "33-128"]
    with pytest.raises(InputError, match="runs of servers"):
        read_measured(tmp_path / "measured.csv")


def test_the_layout_of_aiconfigurators_runs_is_read(tmp_path):
    frame = pd.DataFrame(
        {"system": "h100_sxm", "backend": "vllm", "model_path": ["Qwen/Qwen3-32B", "Qwen/Qwen3-235B-A22B-FP8", "x"],
         "batch_size": 16.0, "isl": 1024, "osl": 128, "tp_size": [2.0, np.nan, 4.0], "pp_size": 1,
         "gemm_quant_mode": ["", "", "fp8_block"], "silicon_tpot_ms": [16.5, 10, 0], "silicon_ttft_ms": 840}
    )  # fmt: skip
    table = read_measured_table(write(tmp_path, frame))
    rows = table.frame
    assert rows["scheme"].tolist() == ["bfloat16", "fp8"]
    assert (rows["gpus"].tolist(), rows["concurrency"].tolist()) == ([2, 1], [16, 16])
    assert rows["measured_tpot_s"].tolist() == pytest.approx([0.0165, 0.01])
    assert [(one.reason, one.lines) for one in table.rejections] == [("silicon_tpot_ms is not above zero", (4,))]


def test_runs_are_rejected_like_kernels(tmp_path):
    frame = pd.concat([measured_runs(1.0, 1.0).head(1)] * 5, ignore_index=True).astype(object).assign(gpus="")
    frame.loc[1, ["measured_tpot_s", "measured_ttft_s"]] = ""
    frame.loc[2, "concurrency"] = -1
    frame.loc[3, "gpus"] = "two"
    frame.loc[4, "measured_ttft_s"] = "inf"
    assert rejected(tmp_path, frame) == {
        "measured_ttft_s is infinite": (6,),
        "neither time is given": (3,),
        "concurrency is not above zero": (4,),
        "gpus is not a number": (5,),
    }


def test_what_is_no_measured_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no measured table"):
        read_measured(write(tmp_path, ROWS))
    with pytest.raises(InputError, match='"hw" is missing'):
        read_measured(write(tmp_path, measured(1.0).drop(columns="hw")))
    with pytest.raises(InputError, match='"model" is missing'):
        read_measured_table(write(tmp_path, measured_runs(1.0, 1.0).drop(columns="model")))


def test_the_gate(tmp_path):
    path = write(tmp_path, measured(2.0))
    runner = CliRunner()
    for limit in ("60%", "0.6"):
        assert runner.invoke(command, ["--input", str(path), "--fail-above", limit]).exit_code == 0
    failed = runner.invoke(command, ["--input", str(path), "--fail-above", "10%"])
    assert isinstance(failed.exception, GateError)
    assert failed.exception.exit_code == 7
    assert "kernel time is 50 %, above the limit of 10 %" in str(failed.exception)
    for limit in ("x", "-1%", "nan"):
        assert runner.invoke(command, ["--input", str(path), "--fail-above", limit]).exit_code == 2


def test_each_figure_has_to_pass_the_gate(tmp_path):
    path = write(tmp_path, measured_runs(1.0, 2.0))
    failed = CliRunner().invoke(command, ["--input", str(path), "--fail-above", "40%"])
    assert "time to first token is 50 %" in str(failed.exception)


def test_json_holds_everything(tmp_path):
    frame = measured(1.2)
    frame.loc[0, "measured_s"] = np.inf
    done = CliRunner().invoke(command, ["--input", str(write(tmp_path, frame)), "--json"])
    found = json.loads(done.output)
    assert (found["kind"], found["row_count"], found["rejected_count"]) == ("kernels", 4, 1)
    assert found["rejections"] == [{"reason": "measured_s is infinite", "lines": [2]}]
    figure = found["figures"][0]
    assert (figure["figure"], figure["whole"]["row_count"]) == ("kernel_s", 3)
    assert set(figure["divisions"]) >= {"hw", "scheme"}


REFERENCE = Path(os.environ.get("CODESIGN_REFERENCE_DATA", Path(__file__).parents[4] / "shared")) / "measured"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the measured tables are not here")
@pytest.mark.parametrize(
    ("name", "kind", "row_count"),
    [
        ("gemm_gpu.parquet", "kernels", 16_977),
        ("attention_gpu.parquet", "kernels", 35_423),
        ("moe_gpu.parquet", "kernels", 7_670),
        ("collectives_gpu.parquet", "kernels", 2_820),
        ("serving_e2e_h100.csv", "servers", 332),
    ],
)
def test_every_measured_table_is_read_whole(name, kind, row_count):
    table = read_measured_table(REFERENCE / name)
    assert (table.kind, table.row_count, len(table.frame), table.rejections) == (kind, row_count, row_count, ())
