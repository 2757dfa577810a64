"""What a foreign file holds, and the checks that all formats share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codesign.errors import InputError
from codesign.profiler.records import AnyCase
from codesign.profiler.run_folder import Skipped
from codesign.units import MEBI

FILE_BYTES_MAX = 256 * MEBI
DEPTH_MAX = 32
TEXT_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """One measured case: `count` samples are behind it, of which the file may hold only one middle value.

    `doubt` says why the row is suspect, empty if it is not. `notes` are the conditions that the file states.
    """

    library: str
    library_version: str
    kernel: str
    case: AnyCase
    samples_s: tuple[float, ...]
    count: int
    notes: Mapping[str, Any]
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """The rows of a file, and what in it is none."""

    rows: tuple[ImportedRow, ...]
    skipped: tuple[Skipped, ...]


def seconds(value: Any, scale: float, what: str) -> float:
    """Return a time in seconds; InputError if it is not positive and finite."""
    number = number_of(value, what) * scale
    if not number > 0:
        raise InputError(f"{what} is {number}; a time is above zero")
    return number


def number_of(value: Any, what: str) -> float:
    """Return a finite number, which may be given as text with separators of thousands."""
    try:
        number = float(value.replace(",", "") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise InputError(f"{what} is {str(value)[:40]!r}, no number") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(f"{what} is {value}, no finite number")
    return number


def count_of(value: Any, what: str, smallest: int = 0) -> int:
    """Return a whole number of at least `smallest`."""
    number = number_of(value, what)
    if number != int(number) or not smallest <= number <= 2**40:
        raise InputError(f"{what} is {value}; a whole number from {smallest} on is meant")
    return int(number)


def text_of(value: Any) -> str:
    """Return a short text on one line."""
    return " ".join(str("" if value is None else value).split())[:TEXT_CHARACTERS_MAX]


def stated(source: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the plain values that a file states under these names."""
    kept = {name: source[name] for name in names if source.get(name) not in (None, "")}
    return {name: value if isinstance(value, (int, float)) else text_of(value) for name, value in kept.items()}
