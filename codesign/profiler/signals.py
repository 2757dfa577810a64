"""The first SIGINT or SIGTERM asks for an orderly end, the second ends at once."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

GRACE_S = 1.5


class Stop:
    """Whether the user asked to stop, by which signal and when."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.asked_s = 0.0

    @property
    def asked(self) -> bool:
        """Return whether a signal has come."""
        return self.signal_number is not None

    @property
    def overdue(self) -> bool:
        """Return whether whoever is still at work had its time to finish a sample."""
        return self.asked and time.monotonic() - self.asked_s > GRACE_S

    @property
    def signal_name(self) -> str:
        """Return the name of the signal."""
        return signal.Signals(self.signal_number or 0).name

    @property
    def exit_code(self) -> int:
        """Return the exit code that tells the signal: 130 or 143."""
        return 128 + (self.signal_number or 0)

    def ask(self, number: int) -> None:
        """Note the signal."""
        self.signal_number, self.asked_s = number, time.monotonic()


@contextlib.contextmanager
def stopping(at_once: Callable[[], None]) -> Iterator[Stop]:
    """Yield what the signals ask for; at the second one `at_once` runs and the process ends there."""
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.asked:
            at_once()
            os._exit(128 + number)
        stop.ask(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
