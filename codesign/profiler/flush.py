"""Emptying the caches before a sample: a buffer of three times the last-level cache is written."""

import time
from collections.abc import Callable

import numpy as np

from codesign import native

FLUSH_CACHES = 3
# Workers of the native pool spin about 50 us for their next order, on the processors that the kernel needs.
PAUSE_S = 2e-4


def make_flush(size_bytes: float, threads: int) -> Callable[[], object]:
    """Return what writes so many bytes; the native probe does it on the processors of all threads.

    Without it numpy does, on one: the other processors' own caches then keep what they hold.
    """
    half = int(size_bytes) // 2
    buffer = np.ones(2 * half, dtype=np.uint8)  # touched once, so that its pages exist
    if native.absence() is not None:
        return lambda: buffer.fill(1)
    library = native.load()
    target = library.address_of(buffer)

    def flush() -> None:
        library.roof_copy(-1, target, target + half, half, 1, threads)
        library.roof_copy(-1, target + half, target, half, 1, threads)
        if threads > 1:
            time.sleep(PAUSE_S)

    return flush
