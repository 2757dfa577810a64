"""NVTX ranges in the domain `codesign`, seen by Nsight; where nvtx is missing they do nothing."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

DOMAIN = "codesign"
NOTHING: AbstractContextManager[None] = nullcontext()


class _Range:
    """One range of the domain, entered and left around what is to be seen."""

    __slots__ = ("_attributes", "_domain")

    def __init__(self, domain: Any, attributes: Any) -> None:
        self._domain, self._attributes = domain, attributes

    def __enter__(self) -> None:
        self._domain.push_range(self._attributes)

    def __exit__(self, *_: object) -> None:
        self._domain.pop_range()


class Ranges:
    """Gives ranges; messages are few and fixed, since nvtx keeps them for ever, and numbers go into the payload."""

    def __init__(self) -> None:
        try:
            import nvtx
        except ImportError:
            self._domain: Any = None
        else:
            self._domain = nvtx.get_domain(DOMAIN)

    def range(self, message: str, number: int = 0) -> AbstractContextManager[None]:
        """Return a context in which the range `message` is open; it belongs outside of what is timed."""
        if self._domain is None:
            return NOTHING
        return _Range(self._domain, self._domain.get_event_attributes(message=message, payload=number))
