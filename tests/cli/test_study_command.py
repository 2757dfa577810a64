"""`codesign study calibration` end to end on a tiny model: table, file, page, going on, and what is refused."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.command_line import codesign
from tests.tiny_transformer import save_tiny

pytest.importorskip("torch", reason="models are run with torch")
pytest.importorskip("transformers", reason="models are run with transformers")

OPTIONS = ("--sizes", "2,1", "--sources", "random,self", "--methods", "min-max,entropy", "--repeats", "2",
           "--length", "8")  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return codesign("study", "calibration", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Return the folder with a model and its study, and the command's outcome."""
    folder = tmp_path_factory.mktemp("study")
    save_tiny(folder / "model")
    done = run(folder, "--model", "model", *OPTIONS, "-o", "study.json", "--html", "study.html")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_table_has_a_row_for_each_text_and_method(studied):
    lines = studied[1].stdout.splitlines()
    rows = [line.split()[:3] for line in lines if line.startswith("W8A8-static ")]
    assert rows == [["W8A8-static", text, method] for text in ("random", "self") for method in ("min-max", "entropy")]
    assert any("1 windows" in line and "2 windows" in line and "no calibration" in line for line in lines)
    assert any("least loss with" in line for line in lines)


def test_the_file_holds_every_outcome(studied):
    written = json.loads((studied[0] / "study.json").read_text(encoding="utf-8"))
    assert written["schema"] == "codesign.calibration_study"
    assert written["settings"]["sizes"] == [1, 2]
    assert len(written["outcomes"]) == 2 * 2 * 2 * 2
    assert len(written["references"]) == 1


def test_the_page_is_offline(studied):
    page = (studied[0] / "study.html").read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in page
    assert "entropy on self" in page


def test_a_finished_study_is_only_read(studied):
    folder, first = studied
    before = (folder / "study.json").stat().st_mtime_ns
    again = run(folder, "--model", "model", *OPTIONS, "-o", "study.json")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert (folder / "study.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sizes", "4", "-o", "study.json"), "a study with other settings"),
        (("--html", "study.html"), "exists already"),
        (("--sources", "text"), "needs a text"),
        (("--schemes", "W8A8"), "at run time"),
        (("--methods", "min-max,entrpy"), 'Did you mean "entropy"'),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(studied, options, message):
    refused = run(studied[0], "--model", "model", *options)
    assert refused.returncode == 3, refused.stderr
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
