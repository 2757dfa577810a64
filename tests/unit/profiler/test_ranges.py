"""Ranges that profilers see, and what must not be imported for them or for telemetry."""

import subprocess
import sys
import types

import pytest

from codesign.profiler.ranges import NOTHING, Ranges


def test_ranges_without_nvtx_do_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    ranges = Ranges()
    assert ranges.range("case", 3) is NOTHING
    with ranges.range("case", 3), ranges.range("round", 1):
        pass


class FakeDomain:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def get_event_attributes(self, message: str, payload: int) -> tuple[str, int]:
        return message, payload

    def push_range(self, attributes: tuple[str, int]) -> None:
        self.seen.append(attributes)

    def pop_range(self) -> None:
        self.seen.append("pop")


def test_ranges_open_and_close_in_the_domain_of_codesign(monkeypatch):
    domains = {}
    nvtx = types.ModuleType("nvtx")
    nvtx.get_domain = lambda name: domains.setdefault(name, FakeDomain())
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)
    ranges = Ranges()
    with pytest.raises(ValueError, match="kernel"), ranges.range("case", 3), ranges.range("round", 1):
        raise ValueError("kernel")
    assert list(domains) == ["codesign"]
    assert domains["codesign"].seen == [("case", 3), ("round", 1), "pop", "pop"]


def test_real_nvtx_takes_our_ranges():
    pytest.importorskip("nvtx", reason="nvtx is optional")
    with Ranges().range("case", 3):
        pass


def test_help_and_telemetry_import_neither_nvtx_nor_numpy_nor_bindings():
    code = (
        "import sys, codesign.cli.main, codesign.profiler.telemetry, codesign.profiler.telemetry_child, "
        "codesign.profiler.ranges, codesign.profiler.timing, codesign.profiler.verdict, codesign.profiler.energy; "
        "print(sorted({'nvtx', 'numpy', 'pynvml', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
