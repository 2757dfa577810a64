"""Emptying the caches before a sample: a buffer of several times the last-level cache is written."""

import functools
import time
from collections.abc import Callable

import numpy as np

from codesign import native

# Workers of the native pool spin about 50 us for their next order, on the processors that the kernel needs.
PAUSE_S = 2e-4


@functools.cache
def make_flush(size_bytes: int, threads: int) -> Callable[[], object]:
    """Return what writes so many bytes; the native probe does it on the processors of all threads.

    Without it numpy does, on one: the other processors' own caches then keep what they hold. The buffer stays for all
    cases of the process.
    """
    if native.absence() is not None:
        buffer = np.ones(size_bytes, dtype=np.uint8)
        return lambda: buffer.fill(1)
    library, half_bytes = native.load(), size_bytes // 2
    first, second = library.pages_alloc(half_bytes), library.pages_alloc(half_bytes)
    if not first or not second:
        raise MemoryError

    def flush() -> None:
        library.roof_copy(library.isa_best(), first, second, half_bytes, 1, threads)
        library.roof_copy(library.isa_best(), second, first, half_bytes, 1, threads)
        if threads > 1:
            time.sleep(PAUSE_S)

    return flush
