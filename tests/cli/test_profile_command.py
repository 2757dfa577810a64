"""`codesign profile` and `codesign records` from end to end, and their way into fit and validate."""

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from codesign.cli.profile import make_request
from codesign.cli.profile_steps import WORDS
from codesign.hardware.file import copy_profile
from codesign.profiler.export import frame_of, read_measurements
from codesign.profiler.profile import plan_run
from codesign.profiler.run_folder import open_run, read_head, read_run, write_head
from codesign.profiler.verdict import Kind, Reason, Verdict
from tests import command_line
from tests.command_line import codesign_in_a_process, small_memory_probe
from tests.fake_kernels import MODULE
from tests.measured_rows import gemm_row, run_head

SHAPES = [(n, k) for n in (1024, 4096, 11008) for k in (2048, 4096, 11008)]
FAKE = ("--hw", "epyc-9654", "--shapes", "64x128,63x128", "--batch", "1,4", "--threads", "1", "--libraries",
        "fake,away", "--kernels", MODULE, "--budget-s", "0.2")  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_probe():
    with small_memory_probe():
        yield


def codesign(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_line.codesign(*arguments, cwd=folder)


def seconds(m: int, n: int, k: int) -> float:
    """Return the time of one core of 30 GB/s and 0.2 Tflop/s that adds both up, after 5 us."""
    return 5e-6 + 2.0 * n * k / 30e9 + 2.0 * m * n * k / 0.2e12


def write_run(folder: Path, rows: list, **head: object) -> Path:
    with open_run(folder, run_head(**head)) as writer:
        for row in rows:
            writer.append(row)
        writer.finish("complete")
    return folder


def rows_of_a_core(**more: object) -> list:
    return [gemm_row(seconds(m, n, k), m, n=n, k=k, **more) for n, k in SHAPES for m in (1, 4, 16, 64, 256)]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Return a folder in which the fake library was profiled, and the command's outcome."""
    folder = tmp_path_factory.mktemp("profile")
    return folder, codesign_in_a_process("profile", *FAKE, "-o", "run", cwd=folder)


def test_a_run_prints_its_rows_and_what_was_not_measured(profiled):
    _, done = profiled
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0].startswith("[1/6] fake/")
    for word in ("median us", "of roof", "predicted us", "not installed; pip install away", "n must be even",
                 "6 cases:", "complete."):  # fmt: skip
        assert word in done.stdout
    times = [line.split()[-6:] for line in done.stdout.splitlines() if "fake   " in line]
    assert len(times) == 6


def test_a_second_run_measures_nothing_anew(profiled):
    folder, _ = profiled
    before = (folder / "run" / "samples.jsonl").read_bytes()
    done = codesign(folder, "profile", *FAKE, "-o", "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "run" / "samples.jsonl").read_bytes() == before
    other = codesign(folder, "profile", *FAKE, "--batch", "2", "-o", "run")
    assert (other.returncode, "batches: [1, 4] then, [2] now" in other.stderr) == (3, True)


def test_a_changed_driver_refuses_to_resume_and_is_shown(profiled, tmp_path):
    folder, _ = profiled
    shutil.copytree(folder / "run", tmp_path / "run")
    head = read_head(tmp_path / "run")
    write_head(tmp_path / "run", replace(head, critical={**head.critical, "GPU driver": "550.1"}))
    done = codesign(tmp_path, "profile", *FAKE, "-o", "run")
    assert (done.returncode, "GPU driver: 550.1 then, absent now" in done.stderr) == (3, True), done.stderr


def test_the_key_of_a_case_knows_the_driver_but_not_the_version_of_other_libraries(tmp_path):
    given = {"kernels": (MODULE,), "budget_s": 1.0, "model": None, "shapes": "64x64", "attention": "", "batch": "1",
             "threads": "1", "libraries": "fake", "schemes": "all", "cache": "rotating", "seed": 0,
             "repeat": 1, "sheet_files": (), "energy": False, "soak": None, **dict.fromkeys(WORDS)}  # fmt: skip
    request = make_request("epyc-9654", given)
    keys = {one.key for one in plan_run(request).entries}
    driver = replace(request, environment={**request.environment, "gpu_driver": "560.2"})
    assert not keys & {one.key for one in plan_run(driver).entries}
    states = tuple(replace(one, version="9") if one.name == "broken" else one for one in request.catalog.states)
    other = replace(request, catalog=replace(request.catalog, states=states))
    assert keys == {one.key for one in plan_run(other).entries}


def test_every_reader_gives_the_same_rows(profiled):
    folder, _ = profiled
    shown = codesign(folder, "records", "show", "run", "--json")
    document = json.loads(shown.stdout)
    assert (document["schema"], len(document["measurements"])) == ("codesign.run", 6)
    assert document["run"]["environment"]["cpu"]["architecture"]
    exported = codesign(folder, "records", "export", "run")
    rows = list(csv.DictReader(exported.stdout.splitlines()))
    assert {row["id"] for row in rows} == {one["key"] for one in document["measurements"]}
    assert {(row["library"], row["op"], row["hw"]) for row in rows} == {("fake-1.2.3", "gemm", "epyc-9654")}
    assert codesign(folder, "records", "export", "run", "-o", "t.parquet").returncode == 0
    again = codesign(folder, "records", "export", "run", "-o", "t.parquet")
    assert (again.returncode, "--force" in again.stderr) == (3, True)


def test_a_dry_run_writes_nothing_and_names_cost_and_reasons(tmp_path):
    done = codesign(tmp_path, "profile", *FAKE, "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("6 cases of 3 kernels", "of memory", "fake/plain", "n must be even"):
        assert word in done.stdout
    plan = json.loads(codesign(tmp_path, "profile", *FAKE, "--dry-run", "--json").stdout)
    assert (len(plan["cases"]), plan["cost"]["seconds"] > 0) == (6, True)
    assert list(tmp_path.iterdir()) == []


def test_attention_of_a_model(tmp_path):
    options = ("--hw", "epyc-9654", "--model", "llama-3-8b", "--shapes", "64x64", "--attention", "1024", "--batch", "1",
               "--threads", "1", "--libraries", "fake", "--schemes", "W4A16-g128", "--kernels", MODULE)  # fmt: skip
    done = codesign(tmp_path, "profile", *options, "--budget-s", "0.2", "-o", "run")
    assert done.returncode == 0, done.stderr
    (attention, gemm) = sorted(read_run(tmp_path / "run").measurements, key=lambda one: one.kernel)
    assert (attention.case.kv_format, attention.case.heads, attention.case.kv_tokens) == ("fp16", 32, 1024)
    assert gemm.case.scheme == "W4A16-g128"
    assert "attention fp16 1x32/8x128, 1024 tokens" in done.stdout
    (row,) = frame_of((attention,)).to_dict("records")
    assert (row["op"], row["kv_dtype"], row["kv_tokens"]) == ("attention_decode", "fp16", 1024)


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--shapes", "64x64"), 2, "-o RUN is missing"),
        (("-o", "run"), 2, "--model NAME or --shapes"),
        (("--shapes", "64x64", "--attention", "1024", "-o", "run"), 2, "--attention needs --model"),
        (("--shapes", "64by64", "-o", "run"), 3, "NxK"),
        (("--shapes", "64x64", "--libraries", "fakr", "-o", "run"), 3, 'Did you mean "fake"'),
        (("--shapes", "64x64", "--schemes", "W4A17", "-o", "run"), 3, "Unknown scheme"),
        (("--shapes", "64x64", "--threads", "4096", "-o", "run"), 5, "may use"),
        (("--shapes", "63x64", "-o", "run"), 6, "No kernel here runs any of these cases"),
        (("--shapes", "64x64", "--kernels", "no.such", "-o", "run"), 3, "cannot be imported"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, options, code, word):
    common = ("--hw", "epyc-9654", "--libraries", "fake", "--kernels", MODULE)
    done = codesign(tmp_path, "profile", *common, *options)
    assert (done.returncode, word in done.stderr) == (code, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_machine_of_ones_own_travels_with_the_run(tmp_path):
    (tmp_path / "mine.yaml").write_text(copy_profile("epyc-9654", "mine"), encoding="utf-8")
    options = [option if option != "epyc-9654" else "mine.yaml" for option in FAKE]
    assert codesign(tmp_path, "profile", *options, "-o", "run").returncode == 0
    assert (tmp_path / "run" / "hardware.yaml").read_text() == (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").unlink()
    assert codesign(tmp_path, "records", "show", "run").returncode == 0
    assert {one.hw for one in read_run(tmp_path / "run").measurements} == {"mine"}


def test_fit_reads_a_run_and_says_what_it_left_out(tmp_path):
    contended = gemm_row(1.0, 512, verdict=Verdict(Kind.SUSPECT, (Reason("contention", "busy"),)))
    slower = [gemm_row(9 * seconds(m, n, k), m, n=n, k=k, kernel="slow") for n, k in SHAPES for m in (1, 16)]
    write_run(tmp_path / "run", [*rows_of_a_core(), *slower, contended, gemm_row(1e-9, 2, verdict=wrong())])
    done = codesign(tmp_path, "fit", "--measurements", "run", "--hw", "epyc-9654", "--library", "torch")
    assert done.returncode == 0, done.stderr + done.stdout
    for word in ("65 rows in the file; rejected rows: 2;", "rows to fit: 63", "suspect(contention)",
                 "invalid(wrong_output)"):  # fmt: skip
        assert word in " ".join(done.stdout.split()), done.stdout
    assert (tmp_path / "epyc-9654.torch.yaml").exists()


def wrong() -> Verdict:
    return Verdict(Kind.INVALID, (Reason("wrong_output", "off"),))


def test_validate_reads_a_run_with_its_kernels_and_threads(tmp_path):
    hot, cold = (
        replace(gemm_row(1e-4, 32), key=state, case=replace(gemm_row(1e-4, 32).case, cache=state))
        for state in ("hot", "cold")
    )
    write_run(tmp_path / "run", [*rows_of_a_core(threads=96), hot, *rows_of_a_core(), cold])
    done = codesign(tmp_path, "validate", "--input", "run", "--json")
    assert done.returncode == 0, done.stderr
    table = read_measurements(str(tmp_path / "run"))
    assert table.frame.groupby(["kernel", "threads"]).size().to_dict() == {("mm", 1): 45, ("mm", 96): 45}
    assert [(one.reason, one.lines) for one in table.rejections] == [
        ("the weights were hot in the cache", (46,)),
        ("all caches were emptied before each call, of weights and of code", (92,)),
    ]


def test_a_run_without_valid_rows_is_refused_with_its_reasons(tmp_path):
    write_run(tmp_path / "run", [gemm_row(1e-9, verdict=wrong())])
    done = codesign(tmp_path, "validate", "--input", "run")
    assert (done.returncode, "invalid(wrong_output)" in done.stderr) == (3, True)
    (tmp_path / "empty").mkdir()
    assert "neither a measured table nor a run" in codesign(tmp_path, "validate", "--input", "empty").stderr


def test_records_merge_show_damage_and_salvage(tmp_path):
    write_run(tmp_path / "a", [gemm_row(1e-4)])
    write_run(tmp_path / "b", [gemm_row(2e-4), gemm_row(3e-4, 16)])
    merged = codesign(tmp_path, "records", "merge", "a", "b", "-o", "c")
    assert (merged.returncode, merged.stdout) == (0, "Written: c, 2 cases of 2 runs.\n")
    log = tmp_path / "c" / "samples.jsonl"
    data = bytearray(log.read_bytes())
    data[100] ^= 1
    log.write_bytes(bytes(data))
    refused = codesign(tmp_path, "records", "show", "c")
    assert (refused.returncode, "damaged at byte 0" in refused.stderr) == (3, True)
    salvaged = codesign(tmp_path, "records", "show", "c", "--salvage")
    assert (salvaged.returncode, "byte 0: the checksum does not fit; left out" in salvaged.stderr) == (0, True)
    assert "1 case: 1 valid" in salvaged.stdout


def test_records_import_and_show(tmp_path):
    result = [{"model_type": "llama 7B Q4_0", "n_threads": 2, "n_prompt": 0, "n_gen": 8, "samples_ns": [8e8] * 5}]
    (tmp_path / "bench.json").write_text(json.dumps(result))
    options = ("bench.json", "--format", "llama-bench", "--hw", "epyc-9654", "-o", "run")
    done = codesign(tmp_path, "records", "import", *options)
    assert (done.returncode, done.stdout) == (0, "Written: run, 1 cases; left out: 0.\n"), done.stderr
    shown = codesign(tmp_path, "records", "show", "run")
    assert "llama 7B Q4_0 x 1, 1 + 8 tokens, tpot" in shown.stdout
    assert "100,000" in shown.stdout
