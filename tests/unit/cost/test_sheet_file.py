import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import round_hardware

from codesign.cost.sheet import Calibration, KernelSheet
from codesign.cost.sheet_file import (
    CONSTANTS_PROBLEM,
    load_sheet,
    read_sheet,
    relative_distance,
    sheet_yaml,
    shipped_sheets,
)
from codesign.errors import InputError

SHIPPED = shipped_sheets()
numbers = st.floats(0, 1e29).filter(lambda x: len(repr(x)) <= 40)
names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
texts = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), min_size=1, max_size=40).filter(
    lambda text: text.strip() != ""
)
spans = st.tuples(numbers, numbers).map(lambda ends: (min(ends), max(ends)))
# What the worst shipped calibration of each operation stays below, on shapes left out of the fit.
ERROR_FRACTION_MAX = {
    "gemm": 0.10,
    "attention_decode": 0.12,
    "attention_prefill": 0.13,
    "moe": 0.35,
    "all_reduce": 0.15,
    "all_gather": 0.15,
    "reduce_scatter": 0.15,
    "all_to_all": 0.15,
    "serving_tpot": 0.12,
    "serving_ttft": 0.25,
}
CONSTANTS = {
    operation: calibration.constants
    for where in SHIPPED
    for (operation, _), calibration in load_sheet(*where).calibrations.items()
}


def calibrations(operation: str):
    return st.builds(
        Calibration,
        constants=st.just(CONSTANTS[operation]),
        low_factor=st.floats(0.01, 1),
        high_factor=st.floats(1, 100),
        sample_count=st.integers(1, 10**6),
        error_fraction=st.floats(0, 2),
        fit_range=st.dictionaries(names, spans, max_size=3),
    )


keys = st.tuples(st.sampled_from(sorted(CONSTANTS)), st.sampled_from(["bf16", "W4A16-g128"]))
entries = keys.flatmap(lambda key: st.tuples(st.just(key), calibrations(key[0])))
sheets = st.builds(
    KernelSheet,
    hardware=st.sampled_from(["a100-sxm-80gb", "x.y"]),
    library=st.sampled_from(["vllm", "llama.cpp"]),
    library_version=texts,
    date=st.just("2026-11-21"),
    source=texts,
    calibrations=st.lists(entries, max_size=3).map(dict),
)


@given(sheets)
def test_sheets_round_trip(tmp_path_factory, sheet):
    path = tmp_path_factory.mktemp("sheet") / "sheet.yaml"
    path.write_text(sheet_yaml(sheet), encoding="utf-8")
    assert read_sheet(path) == sheet


@pytest.mark.parametrize(("hardware_name", "library"), SHIPPED)
def test_shipped_sheets_load_and_name_their_origin(hardware_name, library):
    sheet = load_sheet(hardware_name, library)
    assert sheet is not None
    assert (sheet.hardware, sheet.library) == (hardware_name, library)
    assert re.search("aiconfigurator|2-core Zen 4|reports/", sheet.source)
    assert sheet.calibrations
    for (operation, _), calibration in sheet.calibrations.items():
        assert CONSTANTS_PROBLEM[operation](calibration.constants) is None
        assert calibration.error_fraction < ERROR_FRACTION_MAX[operation]
        assert calibration.low_factor < 1 < calibration.high_factor


def test_a_machine_or_library_without_a_sheet_has_none():
    assert load_sheet("t4", "vllm") is None
    assert load_sheet("../../etc/passwd", "vllm") is None
    assert load_sheet("a100-sxm-80gb", "../vllm") is None


def sheet_text() -> str:
    calibration = Calibration(CONSTANTS["moe"] | {"fixed_s": 1e-6}, 0.9, 1.1, 20, 0.05, {"m": (1.0, 64.0)})
    return sheet_yaml(KernelSheet("a", "vllm", "1", "2026-11-21", "me", {("moe", "bf16"): calibration}))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format_version: 1", "format_version: 2", "reads 1 only"),
        ("2026-11-21", "yesterday", "such as"),
        ('hardware: "a"', 'hardware: "../a"', "lower-case letters"),
        ("  moe:", "  matmul:", "unknown key"),
        ('"bf16":', '"b f":', "a scheme or KV format"),
        ("fixed_s: 1e-06", "fixed_s: .inf", "out of range"),
        ("fixed_s: 1e-06", "fixed_s: -1", "out of range"),
        ("fixed_s: 1e-06", "Fixed: 1", "a constant is named"),
        ("low_factor: 0.9", "low_factor: 1.5", "out of range"),
        ("low: 1, high: 64", "low: 65, high: 64", "is above high"),
        ("fit_range: {m: ", "fit_range: {M-x: ", "a size is named"),
        ("sample_count: 20", "sample_count: 2.5", "not whole"),
        ("  moe:", "  gemm:", "missing k_latency_cycles"),
        ('source: "me"\n', "", "missing source"),
        ("calibrations:", "calibrations: &a", "anchor"),
    ],
)
def test_malformed_sheets_are_refused_with_file_and_line(tmp_path, old, new, words):
    path = tmp_path / "bad.yaml"
    assert old in sheet_text()
    path.write_text(sheet_text().replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.yaml:\d+: ") as raised:
        read_sheet(path)
    assert words in str(raised.value)


def test_a_missing_or_binary_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError):
        read_sheet(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\x00\x01")
    with pytest.raises(InputError):
        read_sheet(tmp_path / "binary.yaml")


def test_distance_grows_with_generations_and_kind_of_memory():
    hopper = round_hardware(name="hopper", architecture="hopper")
    ampere = round_hardware(name="ampere", architecture="ampere")
    graphics = replace(ampere, memory=replace(ampere.memory, technology="GDDR6"))
    assert relative_distance(hopper, hopper) == 0
    assert 0 < relative_distance(hopper, ampere) < relative_distance(hopper, graphics)
    assert relative_distance(hopper, replace(ampere, vendor="amd")) is None
    assert relative_distance(hopper, replace(ampere, architecture="unknown")) is None
