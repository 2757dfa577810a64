"""`codesign fit` end to end: a sheet from a table of known constants, and its use in the other commands."""

import csv
import datetime
import json
import subprocess
from pathlib import Path

import pytest

import codesign
from codesign.cost.sheet_file import read_sheet
from codesign.hardware.folder import profile_path
from tests import command_line

HEAD = "hw,library,op,scheme,m,n,k,measured_s\n"
SHAPES = [(n, k) for n in (1024, 4096, 8192, 14336) for k in (2048, 4096, 8192)]
ROWS = (1, 16, 64, 256, 2048)


def seconds(m: int, n: int, k: int) -> float:
    """Return the time of a machine of 500 GB/s and 50 Tflop/s that adds both up, after 20 us."""
    return 2e-5 + 2.0 * (n * k + m * n + m * k) / 500e9 + 2.0 * m * n * k / 50e12


def table(hw: str = "l40s", scheme: str = "BF16", library: str = "vllm-9.9") -> str:
    rows = [f"{hw},{library},gemm,{scheme},{m},{n},{k},{seconds(m, n, k):.6g}\n" for n, k in SHAPES for m in ROWS]
    return HEAD + "".join(rows)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_line.codesign(*arguments, cwd=folder)


def fit(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return run(folder, "fit", "--measurements", "t.csv", "--library", "vllm", *options)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return the folder with a fitted sheet, and the command's outcome."""
    folder = tmp_path_factory.mktemp("fit")
    return folder, fit(folder, table() + "l40s,vllm-9.9,gemm,W4A16-g128,1,4096,4096,1e-5\n", "--hw", "l40s")


def predicted(folder: Path, *options: str) -> list[dict[str, str]]:
    done = run(folder, "predict", "kernels", "--input", "t.csv", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return [row for row in csv.DictReader(done.stdout.splitlines()) if row["scheme"] == "BF16"]


def test_it_says_before_after_and_what_was_not_fitted(fitted):
    folder, done = fitted
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "rows to fit: 61",
        "before: shipped model",
        "after: shapes left out",
        "gemm BF16",
        "1 points are too few",
        "Written: l40s.vllm.yaml",
        "codesign plan --hw l40s --library vllm --sheet l40s.vllm.yaml",
    ):
        assert word in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["l40s.vllm.yaml", "t.csv"]


def test_the_sheet_says_what_it_is_of(fitted):
    sheet = read_sheet(fitted[0] / "l40s.vllm.yaml")
    assert (sheet.hardware, sheet.library, sheet.library_version) == ("l40s", "vllm", "9.9")
    assert abs(datetime.date.fromisoformat(sheet.date) - datetime.date.today()) <= datetime.timedelta(days=1)
    assert sheet.source.endswith("fit of 61 rows of t.csv")
    assert list(sheet.calibrations) == [("gemm", "BF16")]


def test_with_the_sheet_predictions_are_calibrated_and_right(fitted):
    with_sheet, without = predicted(fitted[0], "--sheet", "l40s.vllm.yaml"), predicted(fitted[0])
    assert {row["origin"] for row in with_sheet} == {"calibrated"}
    assert {row["origin"] for row in without} == {"transferred"}
    off, off_without = (
        sum(abs(float(row["predicted_s"]) / float(row["measured_s"]) - 1) for row in rows) / len(rows)
        for rows in (with_sheet, without)
    )
    assert off < 0.05
    assert off_without > 0.3


def test_validate_takes_the_sheet(fitted):
    gate = ("validate", "--input", "t.csv", "--fail-above", "15%")
    assert run(fitted[0], *gate).returncode == 7
    assert run(fitted[0], *gate, "--sheet", "l40s.vllm.yaml").returncode == 0


def test_plan_predict_and_compare_take_the_sheet_and_name_it(fitted):
    folder = fitted[0]
    where = ("--hw", "l40s", "--library", "vllm", "--model", "llama-7b")
    title = f"vllm 9.9 on l40s, {read_sheet(folder / 'l40s.vllm.yaml').date}: codesign {codesign.__version__} fit of 61"
    for command in ("plan", "predict", "compare"):
        both = [run(folder, command, *where, *more) for more in ((), ("--sheet", "l40s.vllm.yaml"))]
        assert [(done.returncode, done.stderr) for done in both] == [(0, "")] * 2
        assert both[0].stdout != both[1].stdout
        named = [title in " ".join(done.stdout.split()) for done in both]
        assert named == [False, command != "compare"]
    plan = json.loads(run(folder, "plan", *where, "--sheet", "l40s.vllm.yaml", "--json").stdout)
    assert plan["kernel_sheets"][0].startswith(title)
    prediction = json.loads(run(folder, "predict", *where, "--sheet", "l40s.vllm.yaml", "--json").stdout)
    assert prediction["predictions"][0]["prediction"]["tpot_s"]["origin"] == "calibrated"


def test_a_sheet_of_another_machine_is_pointed_out(fitted):
    done = run(fitted[0], "predict", "--hw", "a100", "--model", "llama-7b", "--sheet", "l40s.vllm.yaml")
    assert done.returncode == 0
    assert "the sheet of vllm on l40s is of another machine or library" in done.stderr


def test_an_own_machine_gets_an_own_sheet(tmp_path):
    text = profile_path("l40s").read_text(encoding="utf-8").replace("name: l40s\n", "name: my-gpu\n", 1)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    done = fit(tmp_path, table("mine.yaml"), "--hw", "mine.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--hw mine.yaml --library vllm --sheet my-gpu.vllm.yaml" in done.stdout
    assert {row["origin"] for row in predicted(tmp_path, "--sheet", "my-gpu.vllm.yaml")} == {"calibrated"}


def test_a_sheet_is_replaced_only_with_force(tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("mine\n", encoding="utf-8")
    refused = fit(tmp_path, table(), "--hw", "l40s", "--out", "mine.yaml")
    assert refused.returncode == 3
    assert "exists already; use --force to replace it" in refused.stderr
    assert out.read_text(encoding="utf-8") == "mine\n"
    assert fit(tmp_path, table(), "--hw", "l40s", "--out", "mine.yaml", "--force").returncode == 0
    assert read_sheet(out).library == "vllm"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "l40s,vllm,gemm,BF16,16,4096,4096,2e-5\n", "nothing could be fitted"),
        (HEAD, "no rows of vllm on l40s"),
        (table("h100"), "it has h100 with vllm-9.9"),
        (HEAD + table()[len(HEAD) :].replace(",1024,2048,", ",x,2048,").replace("BF16", "B16"), "nothing could be"),
        ("hw,library,op,scheme,m,n,k\nl40s,vllm,gemm,BF16,1,1,1\n", "no measured table"),
        ("hw,library,model,concurrency,prompt_tokens,output_tokens,measured_tpot_s\nl40s,vllm,x,1,1,1,1\n", "servers"),
    ],
)
def test_what_cannot_be_fitted_is_a_sentence_and_writes_nothing(text, words, tmp_path):
    done = fit(tmp_path, text, "--hw", "l40s")
    assert done.returncode == 3
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_bad_rows_are_rejected_by_line(tmp_path):
    done = fit(tmp_path, table() + "l40s,vllm-9.9,gemm,BF16,16,4096,4096,-1\n", "--hw", "l40s")
    assert (done.returncode, done.stderr) == (0, "")
    assert any("measured_s is not above zero" in line and line.split()[-1] == "62" for line in done.stdout.splitlines())


def test_a_hostile_sheet_is_refused_with_its_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("format_version: 1\nhardware: &a [x]\n", encoding="utf-8")
    done = run(tmp_path, "plan", "--hw", "a100", "--model", "llama-7b", "--sheet", "bad.yaml")
    assert done.returncode == 3
    assert "bad.yaml:2" in done.stderr


@pytest.fixture(scope="module")
def fitted_each(tmp_path_factory):
    """Return the folder of a fit that names no library, of a table with three, and the command's outcome."""
    folder = tmp_path_factory.mktemp("each")
    few = "l40s,onnxruntime-1.0,gemm,FP32,16,4096,4096,2e-5\n"
    rest = "".join(table(library=name)[len(HEAD) :] for name in ("sglang-0.5", "torch-2.9"))
    (folder / "t.csv").write_text(HEAD + rest + few + table("h100", library="trtllm-1.0")[len(HEAD) :], "utf-8")
    return folder, run(folder, "fit", "--measurements", "t.csv", "--hw", "l40s", "--out", "sheets")


def test_without_a_library_each_gets_a_sheet_of_its_own(fitted_each):
    folder, done = fitted_each
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "sheets").iterdir()) == ["l40s.sglang.yaml", "l40s.torch.yaml"]
    for name, version in (("sglang", "0.5"), ("torch", "2.9")):
        sheet = read_sheet(folder / "sheets" / f"l40s.{name}.yaml")
        assert (sheet.library, sheet.library_version, list(sheet.calibrations)) == (name, version, [("gemm", "BF16")])
    assert "Warning: onnxruntime: t.csv: nothing could be fitted" in done.stderr


def test_sheets_of_each_library_are_replaced_only_with_force(fitted_each):
    options = ("fit", "--measurements", "t.csv", "--hw", "l40s", "--out", "sheets")
    refused = run(fitted_each[0], *options)
    assert (refused.returncode, "use --force" in refused.stderr) == (3, True)


def test_sheets_of_several_libraries_need_a_folder_and_rows_that_name_them(tmp_path):
    (tmp_path / "t.csv").write_text(table(library=""), encoding="utf-8")
    done = run(tmp_path, "fit", "--measurements", "t.csv", "--hw", "l40s")
    assert (done.returncode, "names no known library on l40s" in done.stderr) == (3, True)
    done = run(tmp_path, "fit", "--measurements", "t.csv", "--hw", "a100")
    assert (done.returncode, "it has l40s: name one with --hw" in done.stderr) == (3, True)
    (tmp_path / "t.csv").write_text(table(), encoding="utf-8")
    done = run(tmp_path, "fit", "--measurements", "t.csv", "--hw", "l40s", "--out", "t.csv")
    assert (done.returncode, "need a folder" in done.stderr) == (3, True)
