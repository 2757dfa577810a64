import json
import re

import numpy as np
import pandas as pd
import pytest

from codesign.cost.measured import read_measured_table
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns, predict_servers
from codesign.cost.validate import predict_figures, validate_table
from codesign.report.validate_page import POINTS_MAX, thinned, write_validation_page
from codesign.report.validate_tables import described, rejected_rows

HOSTILE = "</script><script>alert(1)</script>"


def kernels(row_count, factor=1.25):
    """Return a table of multiplications measured at `factor` times what we predict."""
    frame = pd.DataFrame({"hw": "h100", "library": "vllm", "op": "gemm", "n": 4096, "k": 4096,
                          "scheme": np.resize(["bfloat16", "fp8"], row_count),
                          "m": 1 + np.arange(row_count) % 4096})  # fmt: skip
    return frame.assign(measured_s=predict_table(kernel_columns(frame)).predicted_s * factor)


def page_of(frame, tmp_path, name="page.html"):
    """Return the text of the page of a table."""
    source = tmp_path / "measured.parquet"
    frame.to_parquet(source)
    table = read_measured_table(source)
    predicted = predict_figures(table)
    write_validation_page(validate_table(table, predicted), predicted, source.name, tmp_path / name)
    return (tmp_path / name).read_text(encoding="utf-8")


def figures_of(text):
    """Return the data of every chart."""
    return [json.loads(found) for found in re.findall(r'Plotly\.newPlot\(\s*"figure-[^"]*",\s*(\[.*?\]),\s*\{', text)]


def test_the_page_is_one_offline_file_that_says_everything(tmp_path):
    frame = kernels(40)
    frame.loc[3, "measured_s"] = -1.0
    frame.loc[4, "hw"] = "a1000"
    text = page_of(frame, tmp_path)
    assert len(text) < 6e6
    assert "default-src &#39;none&#39;" in text
    for word in ("off by 20 % on average over 38 rows", "rejected rows: 1", "measured_s is not above zero", "By scheme",
                 "By rows (m)", "Worst rows", "Rows without prediction", "a1000",
                 "codesign validate --input measured.parquet --html page.html --force"):  # fmt: skip
        assert word in text
    assert text.index("off by 20 %") < text.index("rejected rows: 1") < text.index('id="figure-')
    assert len(figures_of(text)) == 3
    assert "Thinned" not in text
    assert "<script src" not in text


def test_residuals_are_parted_by_the_interval(tmp_path):
    frame = kernels(10, factor=1.0)
    frame.loc[0, "measured_s"] *= 50
    residuals = figures_of(page_of(frame, tmp_path))[1]
    assert [trace["name"] for trace in residuals] == [
        "inside the 80 % interval: 90 % of all rows",
        "outside the 80 % interval: 10 % of all rows",
    ]
    assert (residuals[0]["x"], residuals[1]["x"]) == ([float(m) for m in range(2, 11)], [1.0])
    assert residuals[1]["y"] == [0.02]


@pytest.mark.parametrize("row_count", [0, 1])
def test_hardly_any_rows(row_count, tmp_path):
    text = page_of(kernels(max(row_count, 1)).head(row_count), tmp_path)
    assert f"{row_count} rows in the file" in text
    assert len(figures_of(text)) == 3 * row_count
    assert ("No row could be used" in text) == (row_count == 0)


def test_no_row_that_can_be_predicted(tmp_path):
    text = page_of(kernels(20).assign(hw="a1000"), tmp_path)
    assert "no row could be predicted" in text
    assert "codesign hw list" in text
    assert figures_of(text) == []


def test_no_run_at_all_was_measured(tmp_path):
    frame = pd.DataFrame({"hw": ["h100"], "model": "llama-7b", "concurrency": 1, "prompt_tokens": 9, "output_tokens": 9,
                          "measured_tpot_s": -1.0})  # fmt: skip
    text = page_of(frame, tmp_path)
    assert "No row could be used" in text
    assert "measured_tpot_s is not above zero" in text


def test_fifty_thousand_points_are_thinned_with_a_note(tmp_path):
    text = page_of(kernels(50_000), tmp_path)
    assert "the charts show 5,000 of 50,000 rows" in text
    assert "over 50,000 rows" in text
    assert len(text) < 8e6
    for traces in figures_of(text):
        assert sum(len(trace["x"]) for trace in traces if trace["mode"] == "markers") == POINTS_MAX


def test_thinning_keeps_the_order_and_is_no_equal_step():
    frame = pd.DataFrame({"m": np.arange(10 * POINTS_MAX)})
    kept = thinned(frame)["m"].to_numpy()
    assert len(kept) == POINTS_MAX
    assert (np.diff(kept) > 0).all()
    assert len(np.unique(np.diff(kept))) > 10
    assert thinned(frame.head(POINTS_MAX)).equals(frame.head(POINTS_MAX))


def test_the_same_table_gives_the_same_bytes(tmp_path):
    frame = kernels(POINTS_MAX + 100)
    first = page_of(frame, tmp_path)
    assert page_of(frame, tmp_path) == first


def test_names_are_text_not_markup(tmp_path):
    frame = kernels(6)
    frame.loc[0, "hw"] = HOSTILE
    frame["kv_dtype"] = "<img src=x onerror=alert(1)>"
    frame.loc[1, "library"] = f"vllm-{HOSTILE}"
    text = page_of(frame, tmp_path)
    assert HOSTILE not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_servers_have_a_part_per_figure(tmp_path):
    runs = pd.DataFrame({"hw": "h100", "model": "llama-7b", "concurrency": [1, 8, 64], "prompt_tokens": 512,
                         "output_tokens": 128})  # fmt: skip
    served = predict_servers(runs)
    text = page_of(runs.assign(measured_tpot_s=served["tpot_s"], measured_ttft_s=served["ttft_s"] * 2), tmp_path)
    assert "Time per output token: off by" in text
    assert "Time to first token: off by 50 %" in text
    assert len(figures_of(text)) == 6
    assert text.count("By requests in flight") == 2


def test_worst_rows_show_only_the_sizes_of_their_operation():
    row = {"hw": "h100", "op": "all_reduce", "gpus": 8.0, "message_bytes": 1024.0, "m": 3.0, "library": ""}
    assert described(row) == "hw=h100, op=all_reduce, gpus=8, message_bytes=1024"
    assert described({"hw": "h100", "model": "x", "gpus": 2.0}) == "hw=h100, model=x, gpus=2"


def test_rejected_lines_are_shown_as_runs(tmp_path):
    frame = kernels(60)
    frame.loc[[0, 1, 2, 5], "measured_s"] = -1.0
    frame.loc[range(10, 60, 2), "m"] = -1
    frame.to_csv(tmp_path / "x.csv", index=False)
    table = read_measured_table(tmp_path / "x.csv")
    time, size = rejected_rows(validate_table(table, predict_figures(table))).rows
    assert time == ("4", "measured_s is not above zero", "2-4, 7")
    assert size[:2] == ("25", "m is not above zero")
    assert size[2].endswith(", 48, 50 and more")
