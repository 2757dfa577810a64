"""What memory gives right now: the same read as of `hw measure`, short enough to be repeated beside other measurements.

On a shared host the bandwidth of memory moves within seconds, with the neighbours and with the place that the host
gives to our processors.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from codesign.errors import CapabilityError
from codesign.native import absence, load
from codesign.units import MEBI

CACHE_FACTOR = 8
SIZE_MIN_BYTES, SIZE_MAX_BYTES = 64 * MEBI, 256 * MEBI
PASSES = 3  # the middle one: a pass of some milliseconds may meet another program


class MemoryProbe:
    """Reads a buffer far larger than the last-level cache with so many threads, on the processors that are named."""

    def __init__(self, cache_bytes: float) -> None:
        """Say how large the cache is that must not answer; CapabilityError without the native kernels."""
        missing = absence()
        if missing:
            raise CapabilityError(f"Memory's bandwidth cannot be measured: {missing}.")
        self._native = load()
        self._size = int(min(max(CACHE_FACTOR * cache_bytes, SIZE_MIN_BYTES), SIZE_MAX_BYTES))
        self._address = 0
        self._fastest = functools.cache(self._choose)

    def bytes_per_s(self, threads: int, processors: tuple[int, ...]) -> float:
        """Return the bytes per second that a read of some 20 ms gets; `processors` may be empty: wherever we are.

        The first call takes the buffer; CapabilityError if it is not to be had.
        """
        self._native.roof_read(0, 0, 0, 0, threads)  # the workers start, and pin themselves, before we move
        with _on(processors[:1]):
            return self._middle_rate(self._fastest(threads), threads)

    def _choose(self, threads: int) -> Callable[[int], object]:
        """Return the fastest read, as `hw measure` takes it: in one stream or several."""
        native = self._native
        self._address = self._address or native.pages_alloc(self._size)
        if not self._address:
            raise CapabilityError(f"{self._size / MEBI:,.0f} MiB of memory are not to be had; close other programs.")
        reads = [
            functools.partial(read, native.isa_best(), self._address, self._size, 1)
            for read in (native.roof_read, native.roof_read_in_order)
        ]
        return max(reads, key=lambda read: self._middle_rate(read, threads))

    def _middle_rate(self, read: Callable[[int], object], threads: int) -> float:
        return statistics.median(self._rate(read, threads) for _ in range(PASSES))

    def _rate(self, read: Callable[[int], object], threads: int) -> float:
        begin_s = time.perf_counter()
        read(threads)
        return self._size / (time.perf_counter() - begin_s)

    def close(self) -> None:
        """Give the buffer back."""
        address, self._address = self._address, 0
        if address:
            self._native.pages_free(address, self._size)


@contextmanager
def _on(processors: tuple[int, ...]) -> Iterator[None]:
    """Keep this thread on these processors meanwhile; the pool's other workers have their own."""
    if not processors or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
