"""Kernel sheets: the calibrated constants of one (hardware, library), operation by operation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from codesign.cost.arrays import FloatArray

_CONSTANT_MIN, _CONSTANT_MAX = 1e-15, 1e6
UNKNOWN_VERSION = "unknown"


@dataclass(frozen=True, slots=True)
class SheetTime:
    """Seconds from a sheet's constants, of one kernel or of arrays; causes overlap, so `predicted_s` is no sum."""

    compute_s: FloatArray
    memory_s: FloatArray
    fixed_s: FloatArray
    predicted_s: FloatArray


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of one operation under one scheme (or KV format), with what they were fitted on.

    `constants` carry their units in their names. `low_factor` and `high_factor` span the 80 % interval around a
    prediction inside `fit_range` (size -> smallest and largest fitted value); `error_fraction` is the mean absolute
    relative error on shapes that the fit did not see.
    """

    constants: Mapping[str, float]
    low_factor: float
    high_factor: float
    sample_count: int
    error_fraction: float
    fit_range: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class KernelSheet:
    """All calibrations of one library on one machine, by (operation, scheme or KV format)."""

    hardware: str
    library: str
    library_version: str
    date: str
    source: str
    calibrations: Mapping[tuple[str, str], Calibration]


def sheet_title(sheet: KernelSheet) -> str:
    """Return what a sheet is of, when it was made and from what."""
    version = f" {sheet.library_version}" if sheet.library_version != UNKNOWN_VERSION else ""
    return f"{sheet.library}{version} on {sheet.hardware}, {sheet.date}: {sheet.source}"


def constants_problem(
    constants: Mapping[str, float], required: Iterable[str], optional: Iterable[Iterable[str]] = ()
) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is.

    `optional` are groups of names of which a sheet has all or none.
    """
    groups = [tuple(group) for group in optional]
    missing = [name for name in required if name not in constants]
    for group in groups:
        present = [name for name in group if name in constants]
        missing += [name for name in group if present and name not in constants]
    if missing:
        return f"missing {', '.join(missing)}."
    known = sorted({*required, *(name for group in groups for name in group)})
    for name, value in constants.items():
        if name not in known:
            return f"{name} is no constant of this operation; known are {', '.join(known)}."
        if not _CONSTANT_MIN <= value <= _CONSTANT_MAX:
            return f"{name} is {value:g}; allowed is {_CONSTANT_MIN:g} to {_CONSTANT_MAX:g}."
    return None
