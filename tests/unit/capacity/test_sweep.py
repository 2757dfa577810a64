import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from codesign import api
from codesign.capacity.grid_file import Setup, read_grid
from codesign.capacity.grid_predict import predict_setup
from codesign.capacity.sweep import Sweep, predict_chunk, run_sweep
from codesign.errors import CapabilityError, InputError
from codesign.profiler.store import locked
from codesign.report.sweep_page import write_sweep_page
from codesign.setting import Setting

GRID = """
hardware: [h100, a100]
model: [llama-3.1-8b, llama-2-7b]
scheme: [BF16, FP8, W4A16-g128]
kv: [bf16, fp8]
gpus: [1, 2]
library: [vllm]
batch: [1, 8]
prompt: [128, 1024]
output: [64]
"""


def grid_at(tmp_path: Path, text: str = GRID) -> Sweep:
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return Sweep(read_grid(path), tmp_path / "out.parquet")


def nothing(_done: int, _of: int) -> None:
    pass


@pytest.mark.parametrize(
    "setup",
    [
        Setup("h100", "llama-3.1-8b", "FP8", "fp8", "vllm", 2),
        Setup("a100", "mixtral-8x7b", "W4A16-g128", "", "vllm", 4),
        Setup("t4", "gemma-2-2b", "W4A16-g128", "", "", 1),
        Setup("b200", "deepseek-v2-lite", "BF16", "", "", 1),
        Setup("x86-avx512", "llama-3.2-1b", "Q4_K", "", "", 1),
    ],
)
def test_a_sweep_says_what_a_prediction_says(setup):
    """Every column equals the prediction of the case by itself."""
    workloads = [(1, 100, 10), (8, 100, 300), (64, 2000, 1), (3, 777, 50)]
    found = predict_setup(setup, workloads)
    for row, (batch, prompt, output) in enumerate(workloads):
        setting = Setting(batch, prompt, output, library=setup.library, gpu_count=setup.gpus, kv=setup.kv)
        one = api.predict(api.load_hardware(setup.hardware), api.load_model(setup.model), setup.scheme, setting)
        for name in ("ttft_s", "tpot_s", "tokens_per_s"):
            expected = getattr(one, name)
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                assert found[name + suffix][row] == pytest.approx(getattr(expected, end)), (name, end)
        assert found["joule_per_token"][row] == pytest.approx(one.energy_per_token_joule.value)
        assert found["memory_bytes"][row] == pytest.approx(one.memory.total_bytes)
        assert found["fits"][row] == one.fits
        assert found["origin"][row] == str(one.tpot_s.origin)
        usd = math.nan if one.usd_per_million_tokens is None else one.usd_per_million_tokens.value
        assert found["usd_per_million_tokens"][row] == pytest.approx(usd, nan_ok=True)


def test_all_cases_come_out_in_order_with_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr("codesign.capacity.sweep.CASES_PER_CHUNK", 12)
    sweep = grid_at(tmp_path, GRID.replace("W4A16-g128", "W4A8-g128"))
    assert run_sweep(sweep, "local", 1, nothing) == 0
    frame = pd.read_parquet(sweep.target)
    assert len(frame) == sweep.grid.case_count == 2 * 2 * 3 * 2 * 2 * 4
    assert list(frame["hardware"].unique()) == ["h100", "a100"]
    refused = frame[frame["reason"] != ""]
    assert set(refused["scheme"]) == {"W4A8-g128"}  # vLLM multiplies these on Arm alone
    assert frame.loc[frame["reason"] == "", "tpot_s"].gt(0).all()
    assert not sweep.folder.exists()
    import pyarrow.parquet

    about = pyarrow.parquet.read_schema(sweep.target).metadata
    assert about[b"grid"].decode() == sweep.grid.digest


def test_the_page_shows_what_runs_and_says_what_does_not(tmp_path):
    sweep = grid_at(tmp_path, GRID.replace("W4A16-g128", "W4A8-g128"))
    run_sweep(sweep, "local", 1, nothing)
    pages = [tmp_path / "1.html", tmp_path / "2.html"]
    for page in pages:
        write_sweep_page(sweep.target, page)
    text = pages[0].read_text(encoding="utf-8")
    assert text.count("figure-cost") >= 1
    assert "cases cannot run: W4A8-g128 does not run" in text
    assert "The answer as JSON" not in text
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_crowd_of_cases_is_thinned_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("codesign.report.sweep_page.POINTS_MAX", 8)
    sweep = grid_at(tmp_path)
    run_sweep(sweep, "local", 1, nothing)
    write_sweep_page(sweep.target, tmp_path / "page.html")
    assert "the picture shows the 8 nearest to the front" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_cannot_run_is_a_row_with_its_reason():
    found = predict_setup(Setup("t4", "llama-2-7b", "NVFP4", "int4", "vllm", 1), [(1, 10, 10)])
    assert found["reason"][0]
    assert np.isnan(found["tpot_s"][0])
    assert "no-such" in predict_setup(Setup("no-such", "llama-2-7b", "BF16", "", "", 1), [(1, 1, 1)])["reason"][0]


def test_chunks_that_are_there_are_not_predicted_again(tmp_path, monkeypatch):
    """A second run takes up whole chunks, and makes a damaged one anew."""
    monkeypatch.setattr("codesign.capacity.sweep.CASES_PER_CHUNK", 8)
    sweep = grid_at(tmp_path)
    chunks = sweep.chunks
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, "local", 1, stop_after(5))
    assert len(list(sweep.folder.glob("0*.parquet"))) == 5
    sweep.part(2).write_bytes(b"PAR1 torn")
    made = []
    monkeypatch.setattr(
        "codesign.capacity.sweep.predict_chunk", lambda work: made.append(work[0]) or predict_chunk(work)
    )
    assert run_sweep(sweep, "local", 1, nothing) == 4
    assert made == [2, *range(5, len(chunks))]
    assert len(pd.read_parquet(sweep.target)) == sweep.grid.case_count


def stop_after(count: int):
    def report(done: int, _of: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return report


def test_another_grid_or_writer_is_refused(tmp_path):
    sweep = grid_at(tmp_path)
    sweep.folder.mkdir()
    with locked(sweep.folder), pytest.raises(CapabilityError, match=str(os.getpid())):
        run_sweep(sweep, "local", 1, nothing)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, "local", 1, stop_after(0))
    other = grid_at(tmp_path, GRID.replace("64]", "65]"))
    with pytest.raises(InputError, match="of another grid"):
        run_sweep(other, "local", 1, nothing)


def test_processes_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr("codesign.capacity.sweep.CASES_PER_CHUNK", 24)
    one, two = grid_at(tmp_path), Sweep(grid_at(tmp_path).grid, tmp_path / "two.parquet")
    run_sweep(one, "local", 1, nothing)
    run_sweep(two, "local", 2, nothing)
    assert one.target.read_bytes() == two.target.read_bytes()


@pytest.mark.parametrize("after_s", [0.8, 1.5, 2.5])
def test_killed_at_any_moment_it_goes_on(tmp_path, after_s):
    """What a kill leaves is taken up: the result is that of a run in one piece."""
    text = GRID.replace("[1, 8]", str(list(range(1, 20)))).replace("[128, 1024]", str(list(range(100, 108))))
    sweep = grid_at(tmp_path, text)
    command = [sys.executable, "-m", "codesign", "sweep", str(tmp_path / "grid.yaml"), "-o", str(sweep.target)]
    process = subprocess.Popen([*command, "--workers", "2"], start_new_session=True)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run_sweep(sweep, "local", 1, nothing)
    frame = pd.read_parquet(sweep.target)
    assert len(frame) == sweep.grid.case_count
    assert not frame.duplicated(["hardware", "model", "scheme", "kv", "gpus", "batch", "prompt", "output"]).any()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("batch: []", "batch: this list is empty"),
        ("batch: [0]", "whole numbers from 1"),
        ("batch: [nan]", "whole numbers from 1"),
        ("batch: [1.5]", "whole numbers from 1"),
        ("batch: [-1]", "whole numbers from 1"),
        ("batch: 8", "a list such as"),
        ("batch: [1, 2]\nbatsh: [1]", 'Did you mean "batch"'),
        ("batch: [" + ", ".join(map(str, range(1, 3000))) + "]\ngpus: [" + ", ".join(map(str, range(1, 1024))) + "]",
         "too many"),
    ],
)  # fmt: skip
def test_wrong_grids_are_refused_with_key_and_reason(tmp_path, line, why):
    text = GRID.replace("batch: [1, 8]", line)
    if "gpus" in line:
        text = text.replace("gpus: [1, 2]\n", "")
    with pytest.raises(InputError, match=why.replace("(", "\\(")):
        grid_at(tmp_path, text)
