"""Files of other tools, written by hand with their documented fields."""

import json
import struct

import pytest

from codesign.errors import InputError
from codesign.profiler.export import read_measurements
from codesign.profiler.imports import FORMATS
from codesign.profiler.imports.run import import_run
from codesign.profiler.kernel import GemmCase
from codesign.profiler.records import ForeignCase, ServingCase
from codesign.profiler.verdict import Kind

LLAMA = {
    "build_commit": "95b8e33e1",
    "build_number": 6000,
    "cpu_info": "AMD EPYC",
    "backends": "CPU",
    "model_filename": "m.gguf",
    "model_type": "llama 7B Q4_0",
    "n_threads": 2,
    "type_k": "f16",
    "type_v": "f16",
    "n_prompt": 0,
    "n_gen": 32,
    "n_depth": 512,
    "avg_ns": 3.2e9,
    "samples_ns": [3200000000, 3200000064, 3199999936, 3200000000, 3200000000],
}
VLLM = {
    "date": "20260101-000000",
    "backend": "vllm",
    "model_id": "llama-7b",
    "scheme": "BF16",
    "num_prompts": 64,
    "request_rate": "inf",
    "max_concurrency": 8,
    "completed": 64,
    "total_input_tokens": 64 * 512,
    "total_output_tokens": 64 * 128,
    "median_ttft_ms": 120.5,
    "median_tpot_ms": 11.25,
}


def summary(tag: str, name: str, value: str) -> dict:
    return {"tag": tag, "name": tag, "data": [{"name": name, "type": "float64", "value": value}]}


def nvbench(states: list[dict], version: object = "1.0.0") -> dict:
    return {
        "meta": {"argv": ["bench"], "version": {"json": version}},
        "devices": [{"id": 0, "name": "NVIDIA H100"}],
        "benchmarks": [{"name": "gemm", "index": 0, "states": states}],
    }


def axes(**values: str) -> list[dict]:
    return [{"name": name, "type": "string", "value": value} for name, value in values.items()]


NCU_HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def launch(kernel: str, metric: str, unit: str, value: str) -> str:
    return f'"0","47","p","h","{kernel}","1","7","(128, 1, 1)","(8, 1, 1)","0","8.0","","{metric}","{unit}","{value}"'


NCU_LONG = "\n".join(
    (
        "==PROF== Connected to process 4711",
        NCU_HEADER,
        launch("marlin", "gpu__time_duration.sum", "usecond", "1,041.28"),
        launch("marlin", "dram__bytes_read.sum", "Mbyte", "2.5"),
        launch("marlin", "gpu__time_duration.sum", "ms", "1.05"),
        launch("other", "Duration", "ns", "900"),
        launch("other", "Duration", "fortnight", "1"),
    )
)
NCU_RAW = """"ID","Kernel Name","Block Size","Grid Size","CC","gpu__time_duration.sum"
"","","","","","ns"
"0","k","(1, 1, 1)","(2, 1, 1)","9.0","2,000"
"""


def write(folder, value):
    path = folder / "source.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def run_of(folder, value, format_: str, hw: str = "epyc-9654"):
    return import_run(write(folder, value), format_, hw, folder / "run")


def test_llama_bench_generation_becomes_time_per_token(tmp_path):
    (one,) = run_of(tmp_path, [LLAMA], "llama-bench").measurements
    assert one.case == ServingCase("llama 7B", "Q4_0", "fp16", 1, 1, 512, 32, "tpot_s", 2)
    assert one.summary.median_s == pytest.approx(0.1)
    assert (one.library, one.library_version, one.verdict.kind) == ("llama.cpp", "b6000", Kind.VALID)
    assert one.procedure.notes["cpu_info"] == "AMD EPYC"


def test_llama_bench_prompt_and_lines_and_what_cannot_be_kept(tmp_path):
    prompt = {**LLAMA, "n_prompt": 512, "n_gen": 0, "n_depth": 0, "model_type": "qwen2 1.5B F16", "samples_ns": [1e9]}
    mixed = {**LLAMA, "n_prompt": 512}
    zero = {**LLAMA, "samples_ns": [0]}
    run = run_of(tmp_path, "\n".join(map(json.dumps, (prompt, mixed, zero, {}))), "llama-bench")
    (one,) = run.measurements
    assert (one.case.model, one.case.scheme, one.case.figure) == ("qwen2 1.5B", "FP16", "ttft_s")
    assert (one.verdict.kind, one.verdict.reasons[0].name) == (Kind.SUSPECT, "few_samples")
    assert [skipped.what for skipped in run.head.skipped] == ["test 2", "test 3", "test 4"]


def test_a_model_is_measured_by_llama_bench_first(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF and so on")
    (tmp_path / "answer.json").write_text(json.dumps([LLAMA]))
    program = tmp_path / "llama-bench"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncat {tmp_path}/answer.json\n')
    program.chmod(0o755)
    monkeypatch.setenv("CODESIGN_LLAMA_CPP", str(tmp_path))
    run = import_run(tmp_path / "m.gguf", "llama-bench", "epyc-9654", tmp_path / "run")
    assert (run.head.settings["imported"], len(run.measurements)) == ("m.gguf", 1)
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["-m", str(tmp_path / "m.gguf")]
    assert words[-2:] == ["-o", "json"]
    assert words[words.index("-t") + 1].startswith("1")


def test_a_model_is_refused_without_llama_bench_or_with_its_last_word(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF and so on")
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setenv("CODESIGN_LLAMA_CPP", str(tmp_path))
    with pytest.raises(InputError, match="or import its results"):
        import_run(tmp_path / "m.gguf", "llama-bench", "epyc-9654", tmp_path / "run")
    (tmp_path / "llama-bench").write_text("#!/bin/sh\necho no such architecture >&2\nexit 4\n")
    (tmp_path / "llama-bench").chmod(0o755)
    with pytest.raises(InputError, match="ended with 4: no such architecture"):
        import_run(tmp_path / "m.gguf", "llama-bench", "epyc-9654", tmp_path / "run")


def test_a_mix_of_formats_keeps_its_name(tmp_path):
    (one,) = run_of(tmp_path, [{**LLAMA, "model_type": "llama 8B Q4_K - Medium"}], "llama-bench").measurements
    assert (one.case.model, one.case.scheme) == ("llama 8B", "Q4_K - Medium")


def test_vllm_bench_becomes_two_rows_that_validate_reads(tmp_path):
    run = run_of(tmp_path, VLLM, "vllm-bench", "a100-sxm-80gb")
    ttft, tpot = run.measurements
    assert ttft.case == ServingCase("llama-7b", "BF16", "", 1, 8, 512, 128, "ttft_s")
    assert (ttft.summary.median_s, tpot.summary.median_s) == (pytest.approx(0.1205), pytest.approx(0.01125))
    assert ttft.procedure.notes["sample_count"] == 64
    table = read_measurements(str(tmp_path / "run"))
    assert (table.kind, len(table.frame), table.rejections) == ("servers", 2, ())


def test_vllm_bench_uses_the_times_of_requests_and_notes_failures(tmp_path):
    detailed = {**VLLM, "ttfts": [0.1, 0.2, 0.3], "itls": [[0.01, 0.03], [], [0.02]], "failed": 3}
    ttft, tpot = run_of(tmp_path, detailed, "vllm-bench").measurements
    assert (ttft.samples_s, tpot.samples_s) == ((0.1, 0.2, 0.3), (0.02, 0.02))
    assert str(ttft.verdict) == "suspect(imported)"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"max_concurrency": None, "request_rate": 4.0}, "use --max-concurrency"),
        ({"completed": 0}, "completed is 0"),
        ({"median_ttft_ms": -1, "median_tpot_ms": "x"}, "above zero"),
        ({"total_input_tokens": True}, "no finite number"),
    ],
)
def test_a_run_of_vllm_without_what_is_needed_is_refused(tmp_path, change, word):
    with pytest.raises(InputError, match=word):
        run_of(tmp_path, {**VLLM, **change}, "vllm-bench")
    assert not (tmp_path / "run").exists()


def test_vllm_bench_without_a_limit_runs_all_at_once(tmp_path):
    run = run_of(tmp_path, {**VLLM, "max_concurrency": None}, "vllm-bench")
    assert run.measurements[0].case.concurrency == 64


def test_nvbench_samples_beside_the_file(tmp_path):
    (tmp_path / "source.json-bin").mkdir()
    (tmp_path / "source.json-bin" / "0.bin").write_bytes(struct.pack("<6f", *[1e-5] * 6))
    bulk = {
        "tag": "nv/json/bin:nv/cold/sample_times",
        "data": [{"name": "filename", "value": "source.json-bin/0.bin"}, {"name": "size", "value": "6"}],
    }
    clock = summary("nv/cold/sm_clock_rate/mean", "value", "1.7e9")
    state = {"name": "s", "device": 0, "axis_values": axes(M="1", N="4096", K="4096", Scheme="W4A16-g128"),
             "summaries": [bulk, clock], "is_skipped": False}  # fmt: skip
    (one,) = run_of(tmp_path, nvbench([state]), "nvbench").measurements
    assert one.case == GemmCase("W4A16-g128", 1, 4096, 4096, cache="cold")
    assert one.samples_s == pytest.approx([1e-5] * 6)
    assert one.procedure.notes["device"] == "NVIDIA H100"
    assert one.procedure.notes["nv/cold/sm_clock_rate/mean"] == "1.7e9"


def test_nvbench_skips_keep_their_reason_and_other_axes_their_names(tmp_path):
    states = [
        {"name": "a", "is_skipped": True, "skip_reason": "does not fit", "axis_values": axes(T="F16")},
        {"name": "b", "axis_values": axes(T="F16"), "is_skipped": False,
         "summaries": [summary("nv/cold/time/gpu/mean", "value", "2e-5"),
                       summary("nv/cold/sample_size", "value", "90")]},
        {"name": "c", "axis_values": [], "is_skipped": False, "summaries": []},
    ]  # fmt: skip
    run = run_of(tmp_path, nvbench(states), "nvbench")
    (one,) = run.measurements
    assert (one.case, one.samples_s, one.verdict.kind) == (ForeignCase("gemm", {"T": "F16"}), (2e-5,), Kind.VALID)
    assert "does not fit" in run.head.skipped[0].reason
    assert "no cold GPU time" in run.head.skipped[1].reason
    with pytest.raises(InputError, match="without sizes"):
        read_measurements(str(tmp_path / "run"))


@pytest.mark.parametrize("filename", ["../x.bin", "/etc/passwd", "missing.bin"])
def test_nvbench_samples_elsewhere_are_not_read(tmp_path, filename):
    bulk = {"tag": "nv/json/bin:nv/cold/sample_times",
            "data": [{"name": "filename", "value": filename}, {"name": "size", "value": "2"}]}  # fmt: skip
    state = {"name": "s", "axis_values": [], "summaries": [bulk]}
    with pytest.raises(InputError, match="not beside the file"):
        run_of(tmp_path, nvbench([state]), "nvbench")


def test_nvbench_of_another_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="format 1"):
        run_of(tmp_path, nvbench([], "2.0.0"), "nvbench")
    with pytest.raises(InputError, match="no result of NVBench"):
        run_of(tmp_path, "[]", "nvbench")


def test_nsight_compute_launches_are_samples_and_suspect(tmp_path):
    run = run_of(tmp_path, NCU_LONG, "ncu")
    marlin, other = run.measurements
    sizes = {"Grid Size": "(8, 1, 1)", "Block Size": "(128, 1, 1)", "CC": "8.0"}
    assert (marlin.case, other.case) == (ForeignCase("marlin", sizes), ForeignCase("other", sizes))
    assert marlin.samples_s == pytest.approx((1.04128e-3, 1.05e-3))
    assert other.samples_s == pytest.approx((9e-7,))
    assert "profiler" in marlin.verdict.reasons[0].evidence
    assert (run.head.skipped[0].what, "fortnight" in run.head.skipped[0].reason) == ("line 7", True)


def test_nsight_compute_wide_table(tmp_path):
    (one,) = run_of(tmp_path, NCU_RAW, "ncu").measurements
    assert (one.case.name, one.samples_s) == ("k", pytest.approx((2e-6,)))


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", '"ID","x"\n', "\x00", '{"completed": 1}', "[[]]"])
@pytest.mark.parametrize("format_", sorted(FORMATS))
def test_what_is_no_such_file_is_refused_in_a_sentence(tmp_path, format_, text):
    with pytest.raises(InputError) as refusal:
        run_of(tmp_path, text, format_)
    assert str(refusal.value).endswith((".", "}"))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_imported_over_another(tmp_path):
    run_of(tmp_path, [LLAMA], "llama-bench")
    with pytest.raises(InputError, match="holds a run already"):
        run_of(tmp_path, [LLAMA], "llama-bench")
