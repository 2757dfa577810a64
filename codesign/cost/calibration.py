"""Which constants predict a kernel: the sheet of its machine and library, a relative's, another library's, or none."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.origin import Origin
from codesign.cost.sheet import Calibration, KernelSheet
from codesign.cost.sheet_file import kin_distance, load_sheet, machine_kin, relative_distance, shipped_sheets
from codesign.cost.target import Target
from codesign.hardware.file import load_hardware
from codesign.hardware.folder import list_hardware
from codesign.hardware.hardware import Hardware

# Ends of the 80 % interval where constants are borrowed: measured over predicted at the 10th and 90th percentile when
# A100 and H100 (or two libraries on one) predict each other, rounded outward: `python scripts/transfer_errors.py`.
OTHER_MACHINE_FACTORS = (0.70, 1.40)
OTHER_LIBRARY_FACTORS = (0.45, 2.50)
# Doubling the distance to the fitted range widens the interval's ends by this share of themselves, in logarithms.
STRETCH_PER_DOUBLING = 0.5
# Constants of time that the host spends on a call; a captured graph, or a host that runs ahead, hides it.
HOST_PREFIX = "host_"


# Whether the library is another one, whether the machine is, and how far that is.
Nearness = tuple[bool, bool, float]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Constants with the ends of their interval on this machine and how they were come by."""

    constants: Mapping[str, float]
    fit_range: Mapping[str, tuple[float, float]]
    low_factor: float
    high_factor: float
    origin: Origin

    def interval(self, predicted_s: FloatArray, sizes: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Return the ends of the interval, wider the further a size lies outside of what was fitted."""
        outside = as_floats(1.0)
        for name, (low, high) in self.fit_range.items():
            if name in sizes:
                outside = np.maximum(outside, np.maximum(sizes[name] / max(high, 1e-9), low / sizes[name]))
        stretch = 1.0 + STRETCH_PER_DOUBLING * np.log2(outside)
        return predicted_s * self.low_factor**stretch, predicted_s * self.high_factor**stretch


def choose(
    target: Target, operation: str, keys: Sequence[Sequence[str]], alike: Callable[[str, Hardware], bool]
) -> Chosen | None:
    """Return the constants for one operation; None if no sheet has any that fit.

    `keys` are the names under which sheets may hold the operation, in groups of like kernels, the best group first.
    Within a group: the machine's own sheet of the library, then that of the nearest relative, then other libraries
    likewise; of one sheet the first key. Of two sheets of one machine and library, the user's own goes first. `alike`
    says whether a machine runs the same kind of kernel for a key.
    """
    hardware = target.hardware
    for group, names in enumerate(keys):
        for nearness, sheets in itertools.groupby(_nearest_first(target), key=lambda one: one.nearness):
            held = [
                (place, order, sheet.calibrations[operation, key], machine)
                for order, (sheet, machine) in enumerate(one.load() for one in sheets)
                for place, key in enumerate(names)
                if (operation, key) in sheet.calibrations and alike(key, machine)
            ]
            if held:
                _, _, calibration, machine = min(held, key=lambda one: one[:2])
                return _chosen(calibration, hardware, machine, group > 0, nearness)
    return None


def _chosen(
    calibration: Calibration, hardware: Hardware, machine: Hardware, other_key: bool, nearness: Nearness
) -> Chosen:
    other_library, other_machine, _ = nearness
    other_kernel = other_library or other_key
    low, high = calibration.low_factor, calibration.high_factor
    for borrowed, factors in ((other_machine, OTHER_MACHINE_FACTORS), (other_kernel, OTHER_LIBRARY_FACTORS)):
        if borrowed:
            low, high = min(low, factors[0]), max(high, factors[1])
    origin = Origin.TRANSFERRED if other_kernel or other_machine else Origin.CALIBRATED
    constants = scaled(calibration.constants, hardware, machine) if other_machine else calibration.constants
    return Chosen(constants, calibration.fit_range, low, high, origin)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A sheet that may be read, and how near its machine and library are; the nearest is asked first."""

    nearness: Nearness
    machine: str
    library: str
    sheet: KernelSheet | None = None
    hardware: Hardware | None = None

    def load(self) -> tuple[KernelSheet, Hardware]:
        """Return the sheet and its machine."""
        sheet = self.sheet or load_sheet(self.machine, self.library)
        assert sheet is not None  # the folder was listed
        return sheet, self.hardware or _machine(self.machine)


def _nearest_first(target: Target) -> Iterable[_Reference]:
    """Return the sheets of the machine and its relatives, the user's own before shipped ones where equally near.

    They are read only when asked: reading YAML is what takes the time.
    """
    hardware = target.hardware
    shipped = _shipped_nearest_first(hardware.name, machine_kin(hardware), target.library)
    if not target.sheets:
        return shipped
    own = []
    for sheet in target.sheets:
        machine = hardware if sheet.hardware == hardware.name else None
        if machine is None and sheet.hardware in list_hardware():
            machine = _machine(sheet.hardware)
        distance = None if machine is None else relative_distance(hardware, machine)
        if sheet.hardware == hardware.name:
            distance = 0.0
        if distance is not None:
            nearness = (sheet.library != target.library, sheet.hardware != hardware.name, distance)
            own.append(_Reference(nearness, sheet.hardware, sheet.library, sheet, machine))
    return sorted([*own, *shipped], key=lambda one: one.nearness)


@functools.cache
def _shipped_nearest_first(name: str, kin: tuple[str, ...], library: str) -> tuple[_Reference, ...]:
    found = []
    for machine, other_library in shipped_sheets():
        distance = 0.0 if machine == name else kin_distance(kin, machine_kin(_machine(machine)))
        if distance is not None:
            found.append(_Reference((other_library != library, machine != name, distance), machine, other_library))
    return tuple(sorted(found, key=lambda one: one.nearness))


def own_sheets(target: Target) -> tuple[KernelSheet, ...]:
    """Return the sheets of the target's own machine and library, in the order in which they are asked."""
    where = (target.hardware.name, target.library)
    shipped = load_sheet(*where)
    own = tuple(sheet for sheet in target.sheets if (sheet.hardware, sheet.library) == where)
    return own if shipped is None else (*own, shipped)


def has_operation(target: Target, operation: str) -> bool:
    """Return whether some sheet of the target's library, on whatever machine, holds the operation."""
    own = (sheet for sheet in target.sheets if sheet.library == target.library)
    return target.library in libraries_with(operation) or any(
        name == operation for sheet in own for name, _ in sheet.calibrations
    )


@functools.cache
def libraries_with(operation: str) -> frozenset[str]:
    """Return the libraries of which some shipped sheet holds the operation."""
    sheets = ((library, load_sheet(machine, library)) for machine, library in shipped_sheets())
    return frozenset(
        library for library, sheet in sheets if sheet and any(name == operation for name, _ in sheet.calibrations)
    )


def scaled(constants: Mapping[str, float], hardware: Hardware, source: Hardware) -> dict[str, float]:
    """Return a relative's constants for another machine.

    Seconds on the device go with the clock, those on the host stay; fractions of peaks stay too, but a machine that
    sustains less of its peaks, such as the T4 at 70 W, gets that share. Scaling by the clock lowers the error between
    A100 and H100 from 22 % to 15 % (`python scripts/transfer_errors.py`).
    """
    ratios = {
        "compute_fraction": min(1.0, hardware.sustained_compute_fraction / source.sustained_compute_fraction),
        "bandwidth_fraction": min(1.0, hardware.memory.sustained_fraction / source.memory.sustained_fraction),
        "_s": source.boost_clock_hz / hardware.boost_clock_hz,
    }
    return {
        name: value * next((ratio for ending, ratio in ratios.items() if name.endswith(ending)), 1.0)
        if not name.startswith(HOST_PREFIX)
        else value
        for name, value in constants.items()
    }


def without_host(constants: Mapping[str, float]) -> dict[str, float]:
    """Return the constants of the device alone."""
    return {name: value for name, value in constants.items() if not name.startswith(HOST_PREFIX)}


@functools.cache
def _machine(name: str) -> Hardware:
    return load_hardware(name)
