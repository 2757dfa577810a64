"""Errors of libraries that mean that memory did not suffice, and the bytes that they say were wanted.

Wordings as PyTorch's allocators for CPUs and GPUs, NumPy and C++ have them.
"""

import re

from codesign.units import format_gib

OUT_OF_MEMORY = "out of memory"
CLASS_NAME = "OutOfMemoryError"  # torch.OutOfMemoryError, which torch.cuda's is too
WORDS = re.compile(r"out of memory|can't allocate memory|bad_alloc", re.IGNORECASE)
SIZE = r"([\d.]+) ?(bytes|[KMGTPE]i?B)"
WANTED = re.compile(rf"(?:tried|unable) to allocate {SIZE}", re.IGNORECASE)
FREE = re.compile(rf"of which {SIZE} is free", re.IGNORECASE)
PREFIXES = "KMGTPE"


def memory_text(error: BaseException) -> str | None:
    """Return the sentence of an error that means that memory did not suffice, None for all others."""
    text = " ".join(str(error).split())
    of_class = isinstance(error, MemoryError) or CLASS_NAME in (one.__name__ for one in type(error).__mro__)
    if not of_class and not (isinstance(error, RuntimeError) and WORDS.search(text)):
        return None
    wanted_bytes, free_bytes = _bytes(WANTED, text), _bytes(FREE, text)
    if wanted_bytes is None:
        return OUT_OF_MEMORY
    free = "" if free_bytes is None else f", {format_gib(free_bytes)} were free"
    return f"{OUT_OF_MEMORY}: {wanted_bytes:.0f} bytes ({format_gib(wanted_bytes)}) were wanted{free}"


def _bytes(pattern: re.Pattern[str], text: str) -> float | None:
    """Return the size that a message names; NumPy and PyTorch mean powers of 1024 by all their units."""
    found = pattern.search(text)
    if found is None:
        return None
    number, unit = found.groups()
    power = 0 if unit.lower() == "bytes" else PREFIXES.index(unit[0].upper()) + 1
    return float(number) * 1024.0**power
