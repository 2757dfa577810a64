"""A value that may be absent: absence is normal on virtual machines and in containers, and has a reason."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """A value, or None and why there is none."""

    value: T | None
    why: str | None = None


def absent(why: str) -> Reading[Any]:
    """Return the reading of something that is not here."""
    return Reading(None, why)


def plain_reading(reading: Reading[Any]) -> Any:
    """Return the value itself, or {"value": null, "why": reason}: the form of every field in a record."""
    return reading.value if reading.value is not None else {"value": None, "why": reading.why}
