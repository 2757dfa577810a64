"""Profiles against outside numbers: single golden rows, and the `_check` rows of the reference facts."""

import csv
import os
from pathlib import Path

import pytest

from codesign.hardware.file import load_hardware
from codesign.units import GIBI, GIGA, TERA

DTYPES = {
    "fp32_tflops_check": "fp32",
    "tf32_tensor_tflops_check": "tf32",
    "fp16_tensor_tflops_fp32acc_check": "fp16",
    "bf16_tensor_tflops_check": "bf16",
    "fp8_tensor_tflops_fp32acc_check": "fp8",
    "fp4_tensor_tflops_check": "fp4",
    "int8_tensor_tops_check": "int8",
    "int4_tensor_tops_check": "int4",
}
DEVICES = {
    "t4": "t4", "v100-sxm2-32gb": "v100", "a10": "a10", "a10g": "a10g", "l4": "l4", "l40s": "l40s",
    "a100-40gb-pcie": "a100-40gb-pcie", "a100-40gb-sxm": "a100-40gb-sxm", "a100-80gb-pcie": "a100-80gb-pcie",
    "a100-80gb-sxm": "a100-80gb-sxm", "h100-pcie": "h100-pcie", "h100-sxm": "h100_sxm", "h100-nvl": "h100-nvl",
    "h200-sxm": "h200_sxm", "b200": "b200", "rtx-3090": "rtx-3090", "rtx-4090": "rtx-4090", "rtx-5090": "rtx-5090",
    "jetson-agx-orin-64gb": "jetson-agx-orin-64gb", "mi300x": "mi300x", "apple-m1-max": "apple-m1-max",
    "apple-m2-ultra": "apple-m2-ultra", "apple-m4-max": "apple-m4-max",
}  # fmt: skip
EXCEPTIONS = {
    ("b200", "fp32_tflops_check"): "sheets print 75 or 80, the formula at 1965 MHz gives 74.4; the sheet is kept",
    (
        "l40s",
        "int4_tensor_tops_check",
    ): "the sheet prints the int8 rate (733), the formula gives 1466; the sheet is kept",
    ("apple-m1-max", "mem_bw_theoretical_check"): "Apple prints 400 for 409.6 (2.3 %)",
    ("apple-m2-ultra", "mem_bw_theoretical_check"): "Apple prints 800 for 819.2 (2.3 %)",
}


CPUS = {
    "xeon-8380": "xeon-8380", "xeon-8480+": "xeon-8480+", "epyc-7763": "epyc-7763", "epyc-9654": "epyc-9654",
    "ryzen-7950x": "ryzen-7950x", "core-i9-13900k": "core-i9-13900k", "graviton2": "graviton2",
    "graviton3": "graviton3", "graviton4": "graviton4", "altra-q80-30": "altra-q80-30",
    "raspberry-pi-4": "pi4", "raspberry-pi-5": "pi5",
    "snapdragon-x-elite": "snapdragon-x-elite", "snapdragon-8-gen-3": "snapdragon-8-gen-3",
}  # fmt: skip
# dtype -> the facts to compare with, best path first
CPU_FIELDS = {
    "fp32": ("fp32_tflops_at_all_core", "fp32_tflops"),
    "fp16": ("fp16_tflops",),
    "bf16": ("bf16_amx_tflops_at_all_core", "bf16_tflops_at_all_core", "bf16_tflops"),
    "int8": ("int8_amx_tops_at_all_core", "int8_i8mm_tops", "int8_tops_at_all_core", "int8_tops"),
}


def _read_facts() -> list[dict[str, str]]:
    default = Path(__file__).resolve().parents[2].parent / "shared"
    path = Path(os.environ.get("CODESIGN_REFERENCE_DATA", default)) / "facts" / "hardware.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


FACTS = _read_facts()
CHECK_ROWS = [
    (row["device"], row["field"], float(row["value"]))
    for row in FACTS
    if row["field"] in {*DTYPES, "mem_bw_theoretical_check"} and row["device"] in DEVICES
]


@pytest.mark.skipif(not CHECK_ROWS, reason="no reference data; set CODESIGN_REFERENCE_DATA")
@pytest.mark.parametrize(("device", "field", "value"), CHECK_ROWS, ids=str)
def test_peaks_agree_with_first_principles(device: str, field: str, value: float) -> None:
    hardware = load_hardware(DEVICES[device])
    if field == "mem_bw_theoretical_check":
        ours = hardware.memory.bandwidth_bytes_per_s / GIGA
    else:
        ours = hardware.peak_flop_per_s[DTYPES[field]] / TERA
    close = abs(ours / value - 1) <= 0.02
    assert close is ((device, field) not in EXCEPTIONS), f"{ours} against {value}"


@pytest.mark.skipif(not CHECK_ROWS, reason="no reference data; set CODESIGN_REFERENCE_DATA")
def test_the_check_rows_cover_every_exception() -> None:
    assert set(EXCEPTIONS) <= {(device, field) for device, field, _ in CHECK_ROWS}
    assert len(CHECK_ROWS) == 138


@pytest.mark.skipif(not FACTS, reason="no reference data; set CODESIGN_REFERENCE_DATA")
@pytest.mark.parametrize("device", CPUS)
def test_cpu_peaks_are_the_best_path_of_the_facts(device: str) -> None:
    values = {row["field"]: row["value"] for row in FACTS if row["device"] == device}
    peaks = load_hardware(CPUS[device]).peak_flop_per_s
    for dtype, fields in CPU_FIELDS.items():
        printed = next((float(values[field]) for field in fields if field in values), None)
        if (device, dtype) == ("snapdragon-8-gen-3", "int8"):
            printed = 2 * float(values["int8_tops"])  # the note of that row: I8MM doubles it
        if printed is not None:
            assert peaks[dtype] / TERA == pytest.approx(printed, rel=0.02), dtype


# name, dtype, dense TFLOP/s or TOPS, and where it is printed
RATES = [
    ("a100", "fp16", 312, "NVIDIA A100 data sheet"),
    ("a100", "int8", 624, "NVIDIA A100 data sheet"),
    ("a100", "int4", 1248, "NVIDIA A100 data sheet"),
    ("a100", "tf32", 156, "NVIDIA A100 data sheet"),
    ("a100", "fp32", 19.5, "NVIDIA A100 data sheet"),
    ("h100", "bf16", 989.4, "NVIDIA H100 data sheet, 1979 with sparsity"),
    ("h100", "fp8", 1979, "NVIDIA H100 data sheet, 3958 with sparsity"),
    ("h100-pcie", "fp16", 756.5, "NVIDIA H100 data sheet, 1513 with sparsity"),
    ("h200", "int8", 1979, "NVIDIA H200 data sheet, 3958 with sparsity"),
    ("b200", "fp4", 9000, "aiconfigurator systems/b200_sxm.yaml, 18000 with sparsity"),
    ("t4", "fp16", 65, "NVIDIA T4 data sheet"),
    ("t4", "int8", 130, "NVIDIA T4 data sheet"),
    ("t4", "int4", 260, "NVIDIA T4 data sheet"),
    ("v100", "fp16", 125, "NVIDIA V100 data sheet"),
    ("a10", "fp16", 125, "NVIDIA A10 data sheet"),
    ("a10g", "fp16", 70, "measured 65.9 in a public A10G roofline write-up"),
    ("l4", "fp8", 242, "NVIDIA L4 data sheet, 485 with sparsity"),
    ("l40s", "fp8", 733, "NVIDIA L40S data sheet, 1466 with sparsity"),
    ("rtx-4090", "fp16", 165.2, "NVIDIA Ada white paper, fp32 accumulate"),
    ("rtx-4090", "int8", 660.6, "NVIDIA Ada white paper"),
    ("mi300x", "fp16", 1307.4, "AMD MI300X data sheet"),
    ("mi300x", "fp8", 2614.9, "AMD MI300X data sheet"),
    ("orin", "int8", 85, "Jetson AGX Orin technical brief, 170 with sparsity"),
    ("xeon-8480+", "int8", 344.064, "56 cores x 2048 (Intel AMX brief) x 3.0 GHz"),
    ("edge-tpu", "int8", 4, "Coral documentation"),
]

# name, GB/s, and where it is printed
BANDWIDTHS = [
    ("a100", 2039, "NVIDIA A100 data sheet"),
    ("a100-pcie-80gb", 1935, "NVIDIA A100 data sheet"),
    ("a100-sxm-40gb", 1555, "NVIDIA A100 data sheet"),
    ("h100", 3350, "NVIDIA H100 data sheet"),
    ("h100-pcie", 2039, "chipsandcheese.com MI300X article"),
    ("h200", 4800, "NVIDIA H200 data sheet"),
    ("t4", 320, "NVIDIA T4 data sheet"),
    ("l4", 300, "NVIDIA L4 data sheet"),
    ("l40s", 864, "NVIDIA L40S data sheet"),
    ("rtx-4090", 1008, "NVIDIA Ada white paper"),
    ("mi300x", 5300, "AMD MI300X data sheet"),
    ("epyc-9654", 460.8, "12 channels x 8 bytes x 4800 MT/s"),
    ("graviton3", 307.2, "8 channels x 8 bytes x 4800 MT/s"),
    ("raspberry-pi-5", 17.1, "4 bytes x 4267 MT/s"),
    ("edge-tpu", 0.5, "USB 3.0: 5 Gbit/s with 8b/10b coding"),
]

# name, GiB, and why
CAPACITIES = [
    ("a100", 80, "HBM: marketing GB are GiB"),
    ("h200", 141, "144384 MiB reported"),
    ("b200", 180, "184320 MiB reported"),
    ("l40s", 46068 / 1024, "46068 MiB reported with inline ECC"),
    ("t4", 15, "15/16 of 16 GiB with inline ECC"),
]


@pytest.mark.parametrize(("name", "dtype", "tflop_per_s", "source"), RATES)
def test_dense_rate(name: str, dtype: str, tflop_per_s: float, source: str) -> None:
    assert load_hardware(name).peak_flop_per_s[dtype] == pytest.approx(tflop_per_s * 1e12, rel=1e-4), source


@pytest.mark.parametrize(("name", "gb_per_s", "source"), BANDWIDTHS)
def test_bandwidth(name: str, gb_per_s: float, source: str) -> None:
    assert load_hardware(name).memory.bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9, rel=1e-4), source


@pytest.mark.parametrize(("name", "gib", "source"), CAPACITIES)
def test_capacity(name: str, gib: float, source: str) -> None:
    assert load_hardware(name).memory.capacity_bytes == pytest.approx(gib * GIBI, rel=1e-5), source


@pytest.mark.parametrize(
    ("name", "absent", "source"),
    [
        ("t4", ("bf16", "tf32", "fp8"), "compute capability 7.5; bf16 emulated at 2.3 TFLOP/s"),
        ("v100", ("bf16", "int8", "int4"), "only fp16 tensor cores, DP4A for int8"),
        ("a100", ("fp8", "fp4"), "no fp8 hardware before Ada"),
        ("h100", ("int4", "fp4"), "int4 emulated at 28 TOPS"),
        ("b200", ("int4",), "int4 emulated"),
        ("rtx-5090", ("int4",), "int4 emulated at 76 TOPS"),
        ("mi300x", ("int4", "fp4"), "fp4 arrives with MI350"),
        ("edge-tpu", ("fp32", "fp16", "bf16", "int4"), "Coral documentation: int8 only"),
        ("raspberry-pi-4", ("fp16", "bf16"), "Armv8.0"),
        ("epyc-7763", ("bf16", "fp16"), "no AVX-512"),
        ("apple-m1-max", ("int8",), "the GPU has no faster int8 path"),
    ],
)
def test_emulated_paths_are_absent(name: str, absent: tuple[str, ...], source: str) -> None:
    assert not set(absent) & set(load_hardware(name).peak_flop_per_s), source


def test_a_t4_sustains_a_third_of_its_peak() -> None:
    # NVIDIA developer forum thread 264462: a cuBLAS 4096^3 loop sustains about 24 TFLOP/s at 70 W
    assert load_hardware("t4").sustained_flop_per_s("fp16") == pytest.approx(24e12, rel=0.01)
