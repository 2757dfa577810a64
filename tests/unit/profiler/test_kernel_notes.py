"""What a reader must know of a kernel, such as that it is reference code, is in records, tables and reports."""

from dataclasses import replace

import pytest

from codesign.profiler.export import row_of
from codesign.profiler.records import KERNEL_NOTE, Measurement, measurement_from_json, measurement_json
from codesign.profiler.run_folder import Run, read_run
from codesign.report.run_page import layer_table, write_run_page
from codesign.report.run_report import run_report
from tests.command_line import codesign, small_memory_probe
from tests.measured_rows import gemm_row, run_head
from tests.special_kernels import MODULE, NOTE


@pytest.fixture(autouse=True, scope="module")
def small_probe():
    with small_memory_probe():
        yield


def noted(row: Measurement) -> Measurement:
    return replace(row, procedure=replace(row.procedure, notes={KERNEL_NOTE: NOTE}))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noted")
    arguments = ("profile", "--hw", "epyc-9654", "--shapes", "64x128", "--batch", "1", "--threads", "1", "--libraries",
                 "noted", "--kernels", MODULE, "--budget-s", "0.2", "-o", str(folder / "run"))  # fmt: skip
    return folder / "run", codesign(*arguments)


def test_a_profile_says_it_beside_the_rows_that_it_concerns(profiled):
    folder, done = profiled
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (header,) = [line for line in lines if line.startswith("case ")]
    (fp8,) = [line for line in lines if " fp8 " in line and "64x128" in line and line.startswith("FP8")]
    assert header.rstrip().endswith("of the kernel")
    assert NOTE.split()[0] in fp8
    assert "".join(NOTE.split()) in "".join(
        text for line in lines for text in line[header.index("of the kernel") :].split()
    )
    assert {one.kernel: one.kernel_note for one in read_run(folder).measurements} == {"fp8": NOTE, "plain": ""}


def test_without_a_note_there_is_no_column(tmp_path, capsys):
    from codesign.cli.profile_view import print_run

    print_run(Run(tmp_path, run_head(), (gemm_row(1e-4),), ()), as_json=False)
    assert "of the kernel" not in capsys.readouterr().out


def test_records_keep_it():
    row = noted(gemm_row(1e-4))
    assert measurement_from_json(measurement_json(row), "here").kernel_note == NOTE
    assert (row_of(row)["kernel_note"], row_of(gemm_row(1e-4))["kernel_note"]) == (NOTE, "")


def test_the_report_says_it_in_its_table_of_layers(tmp_path):
    rows = (gemm_row(1e-4), noted(gemm_row(1e-2, scheme="FP8", kernel="fp8")))
    run = Run(tmp_path, run_head(hw="x86-avx512"), rows, ())
    report = run_report(run)
    table = layer_table(report)
    assert table.headers[-1] == "of the kernel"
    assert {row[2]: row[-1] for row in table.rows} == {"BF16": "", "FP8": NOTE}
    write_run_page(run, report, tmp_path / "page.html")
    assert NOTE in (tmp_path / "page.html").read_text()
    bare = layer_table(run_report(Run(tmp_path, run_head(hw="x86-avx512"), (gemm_row(1e-4),), ())))
    assert "of the kernel" not in bare.headers


def test_fp8_on_a_processor_is_said_to_be_slow():
    pytest.importorskip("torch", reason="torch is optional")
    from codesign.profiler.libraries import all_kernels

    kernels = [one for one in all_kernels() if one.scheme == "FP8" and one.library == "torch" and one.device == "cpu"]
    assert kernels
    assert all("around a hundred times slower than bf16" in one.note for one in kernels)
