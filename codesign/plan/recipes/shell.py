"""Command lines for POSIX shells, one option per line."""

import shlex
from collections.abc import Iterable

Option = tuple[str, ...]  # a flag and its value, or a flag alone


def command(words: str, options: Iterable[Option]) -> str:
    """Return a command whose options stand on lines of their own; values are quoted where the shell needs it."""
    lines = [words, *(" ".join((flag, *map(shlex.quote, values))) for flag, *values in options)]
    return " \\\n  ".join(lines) + "\n"
