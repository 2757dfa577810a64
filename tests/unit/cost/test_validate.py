import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from codesign.cli.validate import command
from codesign.cost.measured import read_measured
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns
from codesign.cost.validate import statistics, validate
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


def measured(factor):
    """Return the rows with what we predict, times a factor, as measurement."""
    return ROWS.assign(measured_s=predict_table(kernel_columns(ROWS)).predicted_s * factor)


def test_a_perfect_prediction_has_no_error():
    whole = validate(measured(1.0)).whole
    assert (whole.row_count, whole.mape_fraction, whole.bias_fraction) == (4, 0.0, pytest.approx(0.0))
    assert whole.coverage_fraction == 1.0


def test_half_the_time_predicted_is_half_an_error_and_a_bias():
    whole = validate(measured(2.0)).whole
    assert whole.mape_fraction == pytest.approx(0.5)
    assert whole.bias_fraction == pytest.approx(-0.5)


def test_coverage_counts_what_lies_inside_the_interval():
    frame = pd.DataFrame({"measured_s": [1.0, 3.0], "low_s": 0.5, "high_s": 2.0, "predicted_s": 1.0,
                          "error_fraction": [0.0, -2 / 3]})  # fmt: skip
    found = statistics("x", frame)
    assert (found.coverage_fraction, found.median_fraction) == (0.5, pytest.approx(1 / 3))


def test_rows_are_divided_and_those_without_prediction_are_counted():
    frame = pd.concat([measured(1.5), measured(1.5).head(1).assign(hw="a1000")], ignore_index=True)
    found = validate(frame)
    assert [row.label for row in found.divisions["hw"]] == ["a100", "h100"]
    assert sum(row.row_count for row in found.divisions["scheme"]) == 4
    assert sum(found.unpredicted.values()) == 1
    assert found.origins == {"datasheet": 4} or sum(found.origins.values()) == 4
    assert len(found.worst) == 4


def test_nothing_to_predict_is_no_validation():
    assert validate(measured(1.0).assign(hw="a1000")) is None


def write(tmp_path, frame):
    path = tmp_path / "measured.csv"
    frame.to_csv(path, index=False)
    return path


def test_rows_without_a_positive_time_are_dropped(tmp_path):
    frame = measured(1.0)
    frame.loc[0, "measured_s"] = -1.0
    frame.loc[1, "measured_s"] = np.nan
    assert len(read_measured(write(tmp_path, frame))) == 2


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
    assert frame["message_bytes"].tolist() == [2048]
    assert frame["library"].tolist() == ["vllm-0.14.0"]


def test_what_is_no_measured_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no measured table"):
        read_measured(write(tmp_path, ROWS))
    with pytest.raises(InputError, match='"hw" is missing'):
        read_measured(write(tmp_path, measured(1.0).drop(columns="hw")))


def test_the_gate(tmp_path):
    path = write(tmp_path, measured(2.0))
    runner = CliRunner()
    for limit in ("60%", "0.6"):
        assert runner.invoke(command, ["--input", str(path), "--fail-above", limit]).exit_code == 0
    failed = runner.invoke(command, ["--input", str(path), "--fail-above", "10%"])
    assert isinstance(failed.exception, GateError)
    assert failed.exception.exit_code == 7
    assert "50 %, above the limit of 10 %" in str(failed.exception)
    for limit in ("x", "-1%", "nan"):
        assert runner.invoke(command, ["--input", str(path), "--fail-above", limit]).exit_code == 2


def test_json_holds_everything(tmp_path):
    done = CliRunner().invoke(command, ["--input", str(write(tmp_path, measured(1.2))), "--json"])
    found = json.loads(done.output)
    assert found["whole"]["row_count"] == 4
    assert set(found["divisions"]) >= {"hw", "scheme"}
