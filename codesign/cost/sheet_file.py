"""Kernel sheets as YAML: one file per (hardware, library) in the folder `kernels` beside the machines' profiles.

Constants are in SI units, each named with its unit; what they mean stands with the formula of the operation.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from codesign.cost.attention_time import decode_constants_problem, prefill_constants_problem
from codesign.cost.collective_time import collective_constants_problem
from codesign.cost.cpu_attention_time import cpu_attention_constants_problem, is_cpu_attention_sheet
from codesign.cost.cpu_gemm_time import cpu_gemm_constants_problem, is_cpu_sheet
from codesign.cost.gemm_time import gemm_constants_problem
from codesign.cost.moe_time import moe_constants_problem
from codesign.cost.serving_time import (
    TPOT_OPERATION,
    TTFT_OPERATION,
    tpot_constants_problem,
    ttft_constants_problem,
)
from codesign.cost.sheet import Calibration, KernelSheet
from codesign.cost.traffic import WIRE_PASSES
from codesign.hardware.folder import NAME, list_hardware, profile_folder
from codesign.hardware.hardware import Hardware
from codesign.yaml_file import Section, read_yaml

FORMAT_VERSION = 1
OPERATIONS = ("gemm", "attention_decode", "attention_prefill", "moe", *WIRE_PASSES, TPOT_OPERATION, TTFT_OPERATION)
Problem = Callable[[Mapping[str, float]], str | None]


def _either(is_cpu: Callable[[Mapping[str, float]], bool], on_cpu: Problem, elsewhere: Problem) -> Problem:
    """Return the check of the formula that the constants belong to."""
    return lambda constants: (on_cpu if is_cpu(constants) else elsewhere)(constants)


# What is wrong with the constants of an operation, as a sentence; None if nothing is.
CONSTANTS_PROBLEM: Mapping[str, Problem] = {
    "gemm": _either(is_cpu_sheet, cpu_gemm_constants_problem, gemm_constants_problem),
    "attention_decode": _either(is_cpu_attention_sheet, cpu_attention_constants_problem, decode_constants_problem),
    "attention_prefill": _either(is_cpu_attention_sheet, cpu_attention_constants_problem, prefill_constants_problem),
    "moe": moe_constants_problem,
    **dict.fromkeys(WIRE_PASSES, collective_constants_problem),
    TPOT_OPERATION: tpot_constants_problem,
    TTFT_OPERATION: ttft_constants_problem,
}
_KEYS = ("format_version", "hardware", "library", "library_version", "date", "source", "calibrations")
_CALIBRATION_KEYS = (
    "constants", "low_factor", "high_factor", "sample_count", "held_out_error_fraction", "fit_range",
)  # fmt: skip
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAME_OF_NUMBER = re.compile(r"[a-z][a-z0-9_]{0,63}")
# A scheme, and after @ the kernel where the library has several.
_SCHEME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@-]{0,63}")
_NUMBER_MAX = 1e30
_FACTOR_MAX = 1e3

# How far apart two generations of tensor units are, in steps; machines that are not listed have no relatives.
ARCHITECTURE_RANK = {"volta": 0, "turing": 1, "ampere": 2, "ada": 3, "hopper": 4, "blackwell": 6}
DATACENTER_MEMORY = ("HBM",)
MEMORY_CLASS_DISTANCE = 1.5


def sheet_folder() -> Path:
    """Return the folder of the shipped kernel sheets."""
    return profile_folder() / "kernels"


def sheet_path(hardware_name: str, library: str) -> Path:
    """Return the file of the sheet of a machine (canonical name) and a library."""
    return sheet_folder() / f"{hardware_name}.{library}.yaml"


@functools.cache
def load_sheet(hardware_name: str, library: str) -> KernelSheet | None:
    """Return the shipped sheet of a machine (canonical name) and a library, None if there is none."""
    if not NAME.fullmatch(hardware_name) or not NAME.fullmatch(library):
        return None
    path = sheet_path(hardware_name, library)
    return read_sheet(path) if path.is_file() else None


@functools.cache
def shipped_sheets() -> tuple[tuple[str, str], ...]:
    """Return (machine, library) of all shipped sheets of shipped machines, sorted."""
    stems = [path.stem for path in sheet_folder().glob("*.yaml")]
    names = list_hardware()
    return tuple(
        sorted((name, stem[len(name) + 1 :]) for stem in stems for name in names if stem.startswith(f"{name}."))
    )


def read_sheets(paths: Iterable[str]) -> tuple[KernelSheet, ...]:
    """Return the sheets in YAML files; InputError as for one."""
    return tuple(read_sheet(path) for path in paths)


def read_sheet(path: str | os.PathLike[str]) -> KernelSheet:
    """Return the sheet in a YAML file; InputError names file, line and key of what is wrong."""
    top = read_yaml(Path(path), "kernel sheet")
    top.check_keys(_KEYS)
    if top.integer("format_version", 1, 10**6) != FORMAT_VERSION:
        top.refuse("format_version", f"this version of codesign reads {FORMAT_VERSION} only.")
    if not _DATE.fullmatch(top.text("date")):
        top.refuse("date", 'write it in quotes, such as "2026-11-21".')
    for key in ("hardware", "library"):
        if not NAME.fullmatch(top.text(key)):
            top.refuse(key, "a name has lower-case letters, digits and . + - only (at most 80).")
    operations = top.section("calibrations", "a mapping of operations")
    operations.check_keys((), OPERATIONS)
    return KernelSheet(
        hardware=top.text("hardware"),
        library=top.text("library"),
        library_version=top.text("library_version"),
        date=top.text("date"),
        source=top.text("source"),
        calibrations=_calibrations(operations),
    )


def _calibrations(operations: Section) -> dict[tuple[str, str], Calibration]:
    found: dict[tuple[str, str], Calibration] = {}
    operation_names = operations.keys()
    for operation in operation_names:
        schemes = operations.section(operation, "a mapping of schemes or KV formats")
        found |= {(operation, name): _calibration(operation, schemes, name) for name in tuple(schemes.keys())}
    return found


def _calibration(operation: str, schemes: Section, scheme: str) -> Calibration:
    if not _SCHEME.fullmatch(scheme):
        schemes.refuse(scheme, "a scheme or KV format is at most 64 letters, digits and . + - _")
    section = schemes.section(scheme)
    section.check_keys(_CALIBRATION_KEYS)
    constants = section.section("constants", "a mapping of numbers")
    values = {name: _number(constants, name) for name in tuple(constants.keys())}
    problem = CONSTANTS_PROBLEM[operation](values) if operation in CONSTANTS_PROBLEM else None
    if problem is not None:
        section.refuse("constants", problem)
    ranges = section.section("fit_range", "a mapping of sizes, each with low and high")
    return Calibration(
        constants=values,
        low_factor=section.number("low_factor", 1.0 / _FACTOR_MAX, 1.0),
        high_factor=section.number("high_factor", 1.0, _FACTOR_MAX),
        sample_count=section.integer("sample_count", 1, 10**9),
        error_fraction=section.number("held_out_error_fraction", 0.0, _FACTOR_MAX),
        fit_range={name: _range(ranges, name) for name in tuple(ranges.keys())},
    )


def _number(section: Section, name: str) -> float:
    """Return a constant; every constant of a formula is a non-negative number."""
    if not _NAME_OF_NUMBER.fullmatch(name):
        section.refuse(name, "a constant is named with lower-case letters, digits and _ (at most 64).")
    return section.number(name, 0.0, _NUMBER_MAX)


def _range(ranges: Section, name: str) -> tuple[float, float]:
    if not _NAME_OF_NUMBER.fullmatch(name):
        ranges.refuse(name, "a size is named with lower-case letters, digits and _ (at most 64).")
    section = ranges.section(name, "a mapping with low and high")
    section.check_keys(("low", "high"))
    low, high = section.number("low", 0.0, _NUMBER_MAX), section.number("high", 0.0, _NUMBER_MAX)
    if low > high:
        ranges.refuse(name, f"low, {low:g}, is above high, {high:g}.")
    return low, high


def sheet_yaml(sheet: KernelSheet) -> str:
    """Return the text of a sheet, which `read_sheet` reads back unchanged."""
    lines = [
        f"# Kernel sheet of {sheet.library} on {sheet.hardware}: constants in SI units, each named with its unit.",
        f"format_version: {FORMAT_VERSION}",
        *(f'{key}: "{_escaped(getattr(sheet, key))}"' for key in ("hardware", "library", "library_version")),
        *(f'{key}: "{_escaped(getattr(sheet, key))}"' for key in ("date", "source")),
        "calibrations:" if sheet.calibrations else "calibrations: {}",
    ]
    operations = [name for name in OPERATIONS if any(name == operation for operation, _ in sheet.calibrations)]
    for operation in operations:
        lines.append(f"  {operation}:")
        for (other, scheme), calibration in sheet.calibrations.items():
            if other == operation:
                lines += [f'    "{scheme}":', *_calibration_lines(calibration)]
    return "\n".join(lines) + "\n"


def _calibration_lines(calibration: Calibration) -> list[str]:
    ranges = calibration.fit_range.items()
    spans = ", ".join(f"{name}: {{low: {_shown(low)}, high: {_shown(high)}}}" for name, (low, high) in ranges)
    constants = [f"        {name}: {_shown(value)}" for name, value in calibration.constants.items()]
    return [
        f"      low_factor: {_shown(calibration.low_factor)}",
        f"      high_factor: {_shown(calibration.high_factor)}",
        f"      sample_count: {calibration.sample_count}",
        f"      held_out_error_fraction: {_shown(calibration.error_fraction)}",
        f"      fit_range: {{{spans}}}",
        "      constants:" if constants else "      constants: {}",
        *constants,
    ]


def _shown(value: float) -> str:
    """Return the shortest text that reads back as the same number."""
    text = repr(float(value))
    return text.removesuffix(".0")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def relative_distance(hardware: Hardware, other: Hardware) -> float | None:
    """Return how far apart two machines are: steps of architecture, more where only one has stacked memory.

    None if they are no relatives.
    """
    return kin_distance(machine_kin(hardware), machine_kin(other))


def machine_kin(hardware: Hardware) -> tuple[str, ...]:
    """Return what decides whose relative a machine is: vendor, kind, architecture and memory technology.

    CPUs have no relatives: constants of a 2-core Zen 4 machine, lent to others by their instructions, raised the error
    of published rates of llama.cpp on them (decode 131 to 169 %, prefill 80 to 99 %; `scripts/published_speed.py`).
    """
    return hardware.vendor, hardware.kind, hardware.architecture, hardware.memory.technology


def kin_distance(kin: tuple[str, ...], other: tuple[str, ...]) -> float | None:
    """Return the distance between what `machine_kin` says of two machines; None if they are no relatives."""
    ranks = [ARCHITECTURE_RANK.get(architecture.lower()) for _, _, architecture, _ in (kin, other)]
    if ranks[0] is None or ranks[1] is None or kin[:2] != other[:2]:
        return None
    stacked = [technology.upper().startswith(DATACENTER_MEMORY) for *_, technology in (kin, other)]
    return abs(ranks[0] - ranks[1]) + (MEMORY_CLASS_DISTANCE if stacked[0] != stacked[1] else 0.0)
