"""Kernel sheets: the calibrated constants of one (hardware, library), operation by operation."""

from collections.abc import Mapping
from dataclasses import dataclass


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
