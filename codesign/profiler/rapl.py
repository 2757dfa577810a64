"""Energy counters of processor packages and memory, as Linux shows them under powercap (RAPL).

Facts from the kernel's Documentation/power/powercap: `energy_uj` counts up and wraps at `max_energy_range_uj`.
"""

from collections.abc import Mapping
from pathlib import Path

from codesign.profiler.reading import Reading, absent
from codesign.units import MICRO

POWERCAP = Path("/sys/class/powercap")
READ_FIX = "let the group of the user read energy_uj, or run as root"


class RaplMeter:
    """Joules of all packages and their memory since the first reading, each zone unwrapped by itself.

    Two readings must not lie further apart than a counter needs to wrap, which is minutes at full power.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = _zones(root)
        self._last_uj: dict[Path, int] = {}
        self._total_uj = 0

    def read_joule(self) -> Reading[float]:
        """Return the joules so far, or why there are none."""
        if not self._zones:
            return absent("the kernel shows no RAPL zones (virtual machine, container or another processor)")
        try:
            now_uj = {zone: _number(zone / "energy_uj") for zone in self._zones.values()}
            ranges_uj = {zone: _number(zone / "max_energy_range_uj") for zone in now_uj}
        except PermissionError:
            return absent(f"RAPL may not be read by this user; {READ_FIX}")
        except (OSError, ValueError) as error:
            return absent(f"RAPL cannot be read ({type(error).__name__})")
        for zone, value in now_uj.items():
            self._total_uj += wrapped_difference(self._last_uj.get(zone, value), value, ranges_uj[zone])
        self._last_uj = now_uj
        return Reading(self._total_uj * MICRO)


def wrapped_difference(before: int, after: int, largest: int) -> int:
    """Return how far a counter that wraps to 0 after `largest` has moved."""
    return after - before if after >= before else after - before + largest


def _number(path: Path) -> int:
    return int(path.read_text())


def _zones(root: Path) -> Mapping[str, Path]:
    """Return packages and their memory by name and owner, each once: two drivers may show the same package."""
    found: dict[str, Path] = {}
    for folder in sorted(root.glob("*rapl*:*"), key=lambda one: (len(one.name), one.name)):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        package = folder.name.split(":")[1]
        if name.startswith("package") or name == "dram":
            found.setdefault(f"{name}@{package if name == 'dram' else ''}", folder)
    return found
