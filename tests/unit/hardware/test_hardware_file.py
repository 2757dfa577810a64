"""Every shipped profile loads, is consistent, and survives a copy."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from codesign.errors import InputError
from codesign.hardware import folder
from codesign.hardware.file import (
    check_hardware_file,
    copy_profile,
    list_hardware,
    load_hardware,
    parse_hardware,
    profile_folder,
    resolve_hardware_name,
)
from codesign.hardware.folder import read_aliases

REQUIRED = [
    "t4", "v100-sxm2-32gb", "a10", "a10g", "l4", "l40s", "a100-pcie-40gb", "a100-sxm-40gb", "a100-pcie-80gb",
    "a100-sxm-80gb", "h100-pcie", "h100-sxm", "h100-nvl", "h200-sxm", "b200", "rtx-3090", "rtx-4090", "rtx-5090",
    "jetson-agx-orin", "mi300x", "xeon-8380", "xeon-8480plus", "epyc-7763", "epyc-9654", "ryzen-7950x",
    "core-i9-13900k", "graviton2", "graviton3", "graviton4", "ampere-altra", "apple-m1-max", "apple-m2-ultra",
    "apple-m4-max", "raspberry-pi-4", "raspberry-pi-5", "snapdragon-x-elite", "snapdragon-8-gen-3", "edge-tpu",
    "x86-avx512", "arm-neon", "zen4-2-core",
]  # fmt: skip

# Rates that differ from units x flop per cycle x boost clock by more than 2 %, and why.
TENSOR = ("tf32", "fp16", "bf16", "fp8", "int8")
SHEET_CLOCK = "the sheet's tensor rates imply a lower clock than the maximum one"
EXCEPTIONS = {
    **{(name, dtype): SHEET_CLOCK for name in ("h100-pcie", "h100-sxm", "h100-nvl", "h200-sxm") for dtype in TENSOR},
    **{("b200", dtype): SHEET_CLOCK for dtype in (*TENSOR, "fp6", "fp4")},
    ("b200", "fp32"): "the sheet prints 80 (others 75), the formula gives 74.4",
    ("l40s", "int4"): "the sheet prints the int8 rate, the architecture would give twice that",
}


@pytest.mark.parametrize("name", REQUIRED)
def test_required_profile_loads_under_its_own_name(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.name == name
    assert hardware.title.isprintable()
    assert len(hardware.digest) == 64


def test_the_list_is_the_required_names_sorted() -> None:
    assert list(list_hardware()) == sorted(REQUIRED)


@pytest.mark.parametrize("name", list_hardware())
def test_peak_is_units_times_rate_times_clock(name: str) -> None:
    hardware = load_hardware(name)
    assert set(hardware.flop_per_cycle_per_unit) == set(hardware.peak_flop_per_s)
    for dtype, peak in hardware.peak_flop_per_s.items():
        formula = hardware.unit_count * hardware.flop_per_cycle_per_unit[dtype] * hardware.boost_clock_hz
        close = abs(peak / formula - 1) <= 0.02
        assert close is ((name, dtype) not in EXCEPTIONS), (dtype, peak / formula)


@pytest.mark.parametrize("name", list_hardware())
def test_every_number_has_a_source_and_assumptions_say_why(name: str) -> None:
    hardware = load_hardware(name)
    for key in (
        "memory.capacity_gib",
        "memory.bandwidth_gb_per_s",
        "power.limit_watt",
        "launch_overhead_us",
        "units.count",
    ):
        assert key in hardware.sources
    assert {f"dense_tflop_per_s.{dtype}" for dtype in hardware.peak_flop_per_s} <= set(hardware.sources)
    for key, source in hardware.sources.items():
        assert len(source.text) > 5, key
        assert not (source.kind == "assumed" and source.confidence == "high" and "choice" not in source.text), key
        assert not ("recalled" in source.text and source.confidence == "high"), key


@pytest.mark.parametrize("name", list_hardware())
def test_copy_loads_and_equals_the_original_except_for_name(name: str) -> None:
    original = load_hardware(name)
    copy = parse_hardware(copy_profile(name, "My_Machine"), "copy.yaml")
    assert copy.name == "my-machine"
    assert replace(copy, name=original.name, aliases=original.aliases, digest=original.digest) == original
    assert parse_hardware(copy_profile(name), "copy.yaml").name == f"{name}-copy"


def test_copy_is_commented_and_refuses_bad_names() -> None:
    assert copy_profile("a100", "mine").count("\n#") > 3
    with pytest.raises(InputError, match="is no name"):
        copy_profile("a100", "../mine")


def test_no_two_profiles_claim_one_name() -> None:
    claims = [alias for name in list_hardware() for alias in (name, *load_hardware(name).aliases)]
    assert sorted(claims) == sorted(set(claims))


@pytest.mark.parametrize("name", list_hardware())
def test_quick_alias_scan_agrees_with_the_parsed_file(name: str) -> None:
    assert read_aliases(name) == load_hardware(name).aliases


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("a100", "a100-sxm-80gb"),
        ("A100_SXM", "a100-sxm-80gb"),
        ("a100-80gb-sxm", "a100-sxm-80gb"),
        ("a100-40gb-pcie", "a100-pcie-40gb"),
        ("h100", "h100-sxm"),
        ("h100_sxm", "h100-sxm"),
        ("h200_sxm", "h200-sxm"),
        ("H200", "h200-sxm"),
        ("L40S", "l40s"),
        ("v100", "v100-sxm2-32gb"),
        ("xeon-8480+", "xeon-8480plus"),
        ("altra-q80-30", "ampere-altra"),
        ("RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("orin", "jetson-agx-orin"),
        ("jetson-agx-orin-64gb", "jetson-agx-orin"),
        ("pi5", "raspberry-pi-5"),
        ("coral", "edge-tpu"),
    ],
)
def test_aliases_resolve(given: str, canonical: str) -> None:
    assert resolve_hardware_name(given) == canonical
    assert load_hardware(given).name == canonical


@pytest.mark.parametrize(
    ("given", "suggestion"), [("h10", "h100"), ("a100-smx-80gb", "a100-sxm-80gb"), ("rtx-4900", "rtx-4090")]
)
def test_unknown_name_suggests_and_points_to_the_list(given: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=r"codesign hw list") as caught:
        load_hardware(given)
    assert f'Did you mean "{suggestion}"?' in str(caught.value)


def test_a_path_is_read_as_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yml"
    mine.write_text(copy_profile("l4", "mine"))
    assert load_hardware(mine).name == "mine"
    assert load_hardware(str(mine)).name == "mine"
    with pytest.raises(InputError, match=r"\.yaml or \.yml"):
        load_hardware(tmp_path / "mine.txt")
    with pytest.raises(InputError, match="cannot read"):
        load_hardware(str(tmp_path / "absent.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InputError, match="regular file"):
        load_hardware(tmp_path / "folder.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match="regular file"):
        load_hardware(tmp_path / "pipe.yaml")


@pytest.mark.parametrize("name", list_hardware())
def test_check_warns_about_exactly_the_known_peaks(name: str) -> None:
    peaks = [line for line in check_hardware_file(profile_folder() / f"{name}.yaml") if "boost clock" in line]
    known = [dtype for profile, dtype in EXCEPTIONS if profile == name]
    assert sorted(line.split(": ")[1] for line in peaks) == sorted(f"dense_tflop_per_s.{dtype}" for dtype in known)


def test_check_names_sparse_rates_doubtful_numbers_and_names(tmp_path: Path) -> None:
    mine = tmp_path / "other.yaml"
    text = copy_profile("a100", "mine").replace("fp16: {value: 312,", "fp16: {value: 624,")
    text = text.replace("base_clock_mhz: {value: 1275,", "base_clock_mhz: {value: 1500,")
    lines = text.splitlines()
    lines = [line for line in lines if not line.startswith("  int4:")]
    mine.write_text("\n".join(lines))
    warnings = check_hardware_file(mine)
    number = next(i for i, line in enumerate(lines, 1) if "value: 624, source" in line and "fp16" in line)
    assert any(f"{mine}:{number}: dense_tflop_per_s.fp16: 2 times" in line and "sparse" in line for line in warnings)
    assert any("units.base_clock_mhz: above boost_clock_mhz" in line for line in warnings)
    assert any("flop_per_cycle_per_unit.int4: dense_tflop_per_s has no such dtype" in line for line in warnings)
    assert any("power.idle_watt: low confidence" in line for line in warnings)
    assert any("mine differs from the file name" in line for line in warnings)


def test_check_misses_a_rate_to_check_by(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(copy_profile("a100", "mine").replace("    int4: {value: 8192", "    fp6: {value: 8192"))
    assert any(
        "dense_tflop_per_s.int4: units.flop_per_cycle_per_unit has no" in line for line in check_hardware_file(mine)
    )


def test_constraints_and_absent_parts() -> None:
    tpu = load_hardware("edge-tpu")
    assert tpu.constraints.symmetric_only
    assert tpu.constraints.batch_one_only
    assert tpu.constraints.static_activations_only
    assert tpu.price_usd_per_hour is None
    assert tpu.peer_link is None
    assert tpu.compute_capability is None
    assert load_hardware("a100").compute_capability == (8, 0)


def test_an_installed_package_looks_inside_itself_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "codesign"
    (package / "hardware").mkdir(parents=True)
    monkeypatch.setattr(folder, "__file__", str(package / "hardware" / "folder.py"))
    assert folder.profile_folder() == tmp_path / "hwprofiles"
    (package / "hwprofiles").mkdir()
    assert folder.profile_folder() == package / "hwprofiles"


def test_a_profile_that_changes_is_read_again(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(copy_profile("a100", "mine"), encoding="utf-8")
    before = load_hardware(str(path))
    assert load_hardware(str(path)) is before
    path.write_text(copy_profile("h100", "mine"), encoding="utf-8")
    assert load_hardware(str(path)).compute_capability == (9, 0) != before.compute_capability
