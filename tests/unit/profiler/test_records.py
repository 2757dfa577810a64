"""Measurements through JSON, keys, and what a run directory makes of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.codec import to_plain
from codesign.errors import InputError
from codesign.profiler.check import Check
from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.load import LoadChange
from codesign.profiler.records import (
    ForeignCase,
    ServingCase,
    measurement_from_json,
    measurement_json,
    newest,
    record_key,
)
from codesign.profiler.run_folder import (
    HARDWARE,
    RunHead,
    Skipped,
    merge_runs,
    open_run,
    read_head,
    read_run,
    write_head,
)
from codesign.profiler.timing import StopReason, WarmUp
from codesign.profiler.verdict import Conditions, Kind, Reason, Verdict
from tests.measured_rows import gemm_row, run_head

CASES = [
    GemmCase("W4A16-g128", 4, 4096, 11008, threads=2, seed=7),
    AttentionCase("fp16", 2, 32, 8, 128, 1, 4096, cache="hot"),
    ServingCase("llama-7b", "BF16", "bf16", 1, 8, 512, 128, "tpot_s"),
    ForeignCase("my_kernel", {"T": "f16", "N": "4096"}),
]


@pytest.mark.parametrize("case", CASES)
def test_a_measurement_comes_back_whole(case):
    one = replace(
        gemm_row(1e-4),
        case=case,
        check=Check(1e-3, 2e-3, True),
        conditions=Conditions(
            stop_reason=StopReason.CI, load=LoadChange(1.0, 2.0, 0.1, None, 0.0, 0.5), gpu_events=("sw_power_cap",)
        ),
        verdict=Verdict(Kind.SUSPECT, (Reason("contention", "busy"),)),
    )
    one = replace(one, procedure=replace(one.procedure, warm_up=WarmUp(0.1, 60, True, 1e-4, 10), round_sizes=(6, 6)))
    assert measurement_from_json(measurement_json(one), "here") == one


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format_version": 2}, "format_version 2"),
        ({"kernel": None}, "kernel"),
        ({"extra": 1}, '"extra" is unknown'),
        ({"case": {"kind": "tea"}}, "kind must be one of"),
        ({"case": {"kind": "gemm", "scheme": "BF16", "m": 1, "n": 2}}, '"k" is missing'),
        ({"samples_s": [1e-4, "fast"]}, r"samples_s\[1\]"),
        ({"verdict": {"kind": "fine", "reasons": []}}, "'fine' is not one of"),
    ],
)
def test_what_is_no_measurement_is_refused_with_its_place(change, word):
    with pytest.raises(InputError, match=word):
        measurement_from_json({**measurement_json(gemm_row(1e-4)), **change}, "here")


def test_a_missing_key_is_named():
    value = measurement_json(gemm_row(1e-4))
    del value["library"]
    with pytest.raises(InputError, match='"library" is missing'):
        measurement_from_json(value, "here")


@given(st.lists(st.sampled_from(["library", "version", "kernel", "case", "critical"]), unique=True, min_size=1))
def test_the_key_changes_with_each_of_its_parts(changed):
    parts = {"library": "a", "version": "1", "kernel": "mm", "case": CASES[0], "critical": {"processor": "x"}}
    other = {"library": "b", "version": "2", "kernel": "mv", "case": replace(CASES[0], m=5), "critical": {}}
    same = record_key(**parts)
    assert record_key(**parts) == same
    assert record_key(**{**parts, **{name: other[name] for name in changed}}) != same


def test_the_newest_of_a_key_counts():
    first, second, other = gemm_row(1e-4), gemm_row(2e-4), gemm_row(3e-4, m=16)
    assert newest((first, other, second)) == (second, other)


def test_a_run_comes_back_and_resumes(tmp_path):
    first, second = gemm_row(1e-4), gemm_row(2e-4, m=16)
    head = run_head(skipped=(Skipped("away", "not installed"),))
    with open_run(tmp_path / "run", head) as writer:
        assert writer.done == frozenset()
        writer.append(first)
    with open_run(tmp_path / "run", head) as writer:
        assert writer.done == {first.key}
        writer.append(second)
        writer.finish("complete")
    run = read_run(tmp_path / "run")
    assert run.head == replace(head, state="complete")
    assert (run.measurements, run.warnings) == ((first, second), ())


def test_an_interrupted_case_is_kept_but_not_done(tmp_path):
    partial = replace(gemm_row(1e-4), verdict=Verdict(Kind.INVALID, (Reason("interrupted", "by SIGINT"),)))
    with open_run(tmp_path, run_head()) as writer:
        writer.append(partial)
    with open_run(tmp_path, run_head()) as writer:
        assert writer.done == frozenset()
        writer.append(gemm_row(1e-4))
    assert read_run(tmp_path).measurements == (gemm_row(1e-4),)


def test_other_settings_are_refused_and_force_deletes(tmp_path):
    with open_run(tmp_path, run_head()) as writer:
        writer.append(gemm_row(1e-4))
    other = run_head(settings={"batches": [2]})
    with (
        pytest.raises(InputError, match=r"other settings \(batches: \[1\] then, \[2\] now\)"),
        open_run(tmp_path, other),
    ):
        pass
    assert len(read_run(tmp_path).measurements) == 1
    with open_run(tmp_path, other, force=True) as writer:
        assert writer.done == frozenset()
    assert read_run(tmp_path).measurements == ()


def test_changed_conditions_refuse_to_resume_and_are_shown(tmp_path):
    with open_run(tmp_path, run_head(critical={"GPU driver": "550.1", "processor": "x"})) as writer:
        writer.append(gemm_row(1e-4))
    changed = run_head(critical={"GPU driver": "560.2", "processor": "x"})
    with pytest.raises(InputError, match=r"GPU driver: 550\.1 then, 560\.2 now.*--force-resume") as refusal, \
         open_run(tmp_path, changed):  # fmt: skip
        pass
    assert "processor" not in str(refusal.value)
    assert read_head(tmp_path).critical["GPU driver"] == "550.1"
    with open_run(tmp_path, changed, force_resume=True) as writer:
        assert len(writer.done) == 1
    assert read_head(tmp_path).critical["GPU driver"] == "560.2"


def test_resuming_cuts_the_torn_tail(tmp_path):
    with open_run(tmp_path, run_head()) as writer:
        writer.append(gemm_row(1e-4))
    with (tmp_path / "samples.jsonl").open("ab") as stream:
        stream.write(b'{"crc":"0000')
    assert "not finished" in read_run(tmp_path).warnings[0]
    with open_run(tmp_path, run_head()) as writer:
        writer.append(gemm_row(2e-4, m=16))
    assert (len(read_run(tmp_path).measurements), read_run(tmp_path).warnings) == (2, ())


def test_a_folder_of_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"thesis\.tex"), open_run(tmp_path, run_head()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_head_that_is_none_or_newer_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        read_head(tmp_path)
    write_head(tmp_path, replace(run_head(), format_version=9))
    with pytest.raises(InputError, match="Update codesign"):
        read_head(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match="format_version"):
        read_head(tmp_path)


def test_runs_of_one_machine_merge_and_others_do_not(tmp_path):
    for name, rows in (("a", [gemm_row(1e-4)]), ("b", [gemm_row(2e-4), gemm_row(3e-4, m=16)])):
        with open_run(tmp_path / name, run_head(skipped=(Skipped("away", "not installed"),))) as writer:
            for row in rows:
                writer.append(row)
            writer.finish("complete")
    (tmp_path / "b" / HARDWARE).write_text("name: x\n")
    run = merge_runs((tmp_path / "a", tmp_path / "b"), tmp_path / "c")
    assert run.measurements == (gemm_row(2e-4), gemm_row(3e-4, m=16))
    assert (run.head.skipped, len(run.head.candidates)) == ((Skipped("away", "not installed"),), 1)
    assert (tmp_path / "c" / HARDWARE).read_text() == "name: x\n"
    with pytest.raises(InputError, match="holds a run already"):
        merge_runs((tmp_path / "a",), tmp_path / "c")
    with open_run(tmp_path / "d", run_head(critical={"processor": "other"})):
        pass
    with pytest.raises(InputError, match="other conditions"):
        merge_runs((tmp_path / "a", tmp_path / "d"), tmp_path / "e")


def test_conditions_that_one_run_alone_names_do_not_hinder_a_merge(tmp_path):
    threads = {"processors of 1 threads": "[1]"}, {"processors of 2 threads": "[0, 1]"}
    for name, critical in zip("ab", threads, strict=True):
        with open_run(tmp_path / name, run_head(critical=critical)):
            pass
    merged = merge_runs((tmp_path / "a", tmp_path / "b"), tmp_path / "c").head.critical
    assert merged == {**threads[0], **threads[1]}
    with open_run(tmp_path / "d", run_head(critical={"processors of 2 threads": "[2, 3]"})):
        pass
    with pytest.raises(InputError, match="other conditions"):
        merge_runs((tmp_path / "a", tmp_path / "b", tmp_path / "d"), tmp_path / "e")


def test_a_head_is_plain_json():
    assert RunHead(**{**to_plain(run_head()), "candidates": (), "skipped": ()}).hw == "epyc-9654"
