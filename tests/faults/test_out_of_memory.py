"""Cases that do not fit into memory: a row that says what was wanted, the others run, memory comes back (A56)."""

import os
from pathlib import Path

import pytest

from codesign.profiler.candidates import Question, RunPlan, Shape, make_plan
from codesign.profiler.discover import load_catalog
from codesign.profiler.run_folder import open_run, read_run
from codesign.profiler.runner import Children, Runner
from codesign.profiler.signals import Stop
from codesign.profiler.verdict import Kind
from codesign.units import MEBI
from tests.measured_rows import run_head
from tests.profile_plans import only, settings
from tests.special_kernels import HELD_BYTES, MODULE

GIVEN_BACK_WITHIN_BYTES = 100 * MEBI
HUNGRY = ("cuda", "torch", "unsaid", "numpy", "late")


def plan(batches: tuple[int, ...]) -> RunPlan:
    question = Question((Shape(64, 128),), (), batches, (1,), ("hungry",), (), "rotating", 3)
    return make_plan(question, load_catalog((MODULE,)), {}, 1e5)


def held_bytes() -> int:
    """Return the resident memory of all processes that this one started."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and fields[0] != "Z":
                total += int((path / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def measure(folder: Path, what: RunPlan, children: Children) -> tuple[dict[str, list], list[int]]:
    """Return the rows by kernel, and the memory of all children whenever a row was finished."""
    held: list[int] = []
    with open_run(folder, run_head()) as writer:
        Runner(writer, settings(modules=(MODULE,)), children, Stop(), lambda _: held.append(held_bytes())).run(what)
    rows: dict[str, list] = {}
    for one in read_run(folder).measurements:
        rows.setdefault(one.kernel, []).append(one)
    return rows, held


def test_each_case_that_does_not_fit_is_a_row_and_the_next_is_measured(tmp_path):
    rows, _ = measure(tmp_path, plan((1, 2)), Children((MODULE,)))
    told = {name: {str(one.verdict.reasons[0].evidence) for one in rows[name]} for name in HUNGRY}
    cuda = "out of memory: 21474836480 bytes (20 GiB) were wanted, 12.1 GiB were free"
    assert told == {
        "cuda": {cuda},
        "torch": {"out of memory: 4000000000000 bytes (3,725 GiB) were wanted"},
        "unsaid": {"out of memory"},
        "numpy": {f"out of memory: {4 * 2**60} bytes (4,294,967,296 GiB) were wanted"},
        "late": {cuda},
    }
    for name in HUNGRY:
        assert [(one.verdict.kind, one.verdict.reasons[0].name, len(rows[name])) for one in rows[name]] == [
            (Kind.INVALID, "oom", 2)
        ] * 2
    assert [one.is_invalid for one in rows["modest"]] == [False, False]


@pytest.mark.parametrize("name", ["cuda", "numpy"])
def test_the_memory_is_given_back_before_the_next_case(tmp_path, name):
    children = Children((MODULE,))
    what = only(plan((1, 2)), name, "modest")
    _, base = measure(tmp_path / "base", only(plan((1, 2)), "modest"), children)
    rows, held = measure(tmp_path / "both", what, children)
    assert len(rows[name]) == len(rows["modest"]) == 2
    assert max(base) > 10 * MEBI
    assert max(held) < max(base) + GIVEN_BACK_WITHIN_BYTES
    assert HELD_BYTES > 2 * GIVEN_BACK_WITHIN_BYTES
    assert held_bytes() < GIVEN_BACK_WITHIN_BYTES
