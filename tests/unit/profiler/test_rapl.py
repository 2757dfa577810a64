from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.profiler.rapl import RaplMeter, wrapped_difference

RANGE_UJ = 262_143_328_850


def zone(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path / "energy_uj"


def test_a_counter_that_wraps_once_gives_the_right_joules(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 3_000_000)
    meter = RaplMeter(tmp_path)
    assert meter.read_joule().value == 0
    counter.write_text("4000000\n")
    assert meter.read_joule().value == pytest.approx(7.0)
    counter.write_text("9000000\n")
    assert meter.read_joule().value == pytest.approx(12.0)


def test_packages_and_their_memory_are_added_each_once(tmp_path):
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 0),
        zone(tmp_path, "intel-rapl:1", "package-1", 0),
        zone(tmp_path, "intel-rapl:0:1", "dram", 0),
        zone(tmp_path, "intel-rapl:1:1", "dram", 0),
    ]
    again = [
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),  # the same package by another driver
        zone(tmp_path, "intel-rapl:0:0", "core", 0),  # inside the package
        zone(tmp_path, "intel-rapl:2", "psys", 0),  # around the packages
    ]
    meter = RaplMeter(tmp_path)
    meter.read_joule()
    for path in again:
        path.write_text("500000000\n")
    assert meter.read_joule().value == 0
    for i, path in enumerate(counted):
        path.write_text(f"{10**i * 1_000_000}\n")
    assert meter.read_joule().value == pytest.approx(1111.0)


def test_each_zone_wraps_by_itself(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 90_000_000, range_uj=100_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    meter = RaplMeter(tmp_path)
    meter.read_joule()
    first.write_text("5000000\n")
    second.write_text("1000000\n")
    assert meter.read_joule().value == pytest.approx(15.0 + 1.0)


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_no_zones_are_absent_with_a_reason(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    reading = RaplMeter(tmp_path / folder).read_joule()
    assert reading.value is None
    assert "no RAPL zones" in reading.why


@pytest.mark.parametrize(
    ("error", "reason"),
    [(PermissionError(13, "denied"), "may not be read by this user"), (OSError(5, "io"), "OSError")],
)
def test_what_cannot_be_read_is_absent_with_a_reason(tmp_path, monkeypatch, error, reason):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter, read = RaplMeter(tmp_path), Path.read_text

    def refuse(path: Path, *arguments: object) -> str:
        if path == counter:
            raise error
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)
    reading = meter.read_joule()
    assert reading.value is None
    assert reason in reading.why


def test_garbage_is_absent_with_a_reason(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 5).write_text("lots\n")
    assert "ValueError" in RaplMeter(tmp_path).read_joule().why


@given(st.integers(1, 2**40), st.data())
def test_the_difference_is_what_was_added(largest, data):
    before, added = data.draw(st.integers(0, largest - 1)), data.draw(st.integers(0, largest - 1))
    assert wrapped_difference(before, (before + added) % largest, largest) == added


def test_a_zone_without_a_name_is_passed_over(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    zone(tmp_path, "intel-rapl:1", "package-1", 5)
    assert RaplMeter(tmp_path).read_joule().value == 0
