"""The one error tree. Every message is a sentence that says what was given, what is allowed and where.

CodesignError (1)
├── InputError (3)        a file or a value given by the user is wrong
├── InfeasibleError (4)   no plan meets the budgets
├── CapabilityError (5)   a part of the environment is missing: a package, a GPU, a permission
├── MeasurementError (6)  a measurement is invalid
└── GateError (7)         a gate such as --fail-above failed

The number is the exit code of the command line. Usage errors (2) are click's own.
"""

import difflib
from collections.abc import Iterable


class CodesignError(Exception):
    """Root of all errors raised on purpose; anything else that escapes is our bug."""

    exit_code = 1


class InputError(CodesignError):
    """A file or value given by the user is wrong; nothing was written."""

    exit_code = 3


class InfeasibleError(CodesignError):
    """No plan meets all budgets; the message names the tightest and its smallest feasible value."""

    exit_code = 4


class CapabilityError(CodesignError):
    """The environment lacks something that the command needs."""

    exit_code = 5


class MeasurementError(CodesignError):
    """A measurement is invalid and must not be used."""

    exit_code = 6


class GateError(CodesignError):
    """A gate set by the user was not passed."""

    exit_code = 7


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the nearest known word, or an empty string."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.55)
    return f' Did you mean "{lowered[near[0]]}"?' if near else ""
