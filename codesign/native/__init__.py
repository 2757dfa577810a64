"""Our own kernels: the compiled module, if this installation has one, and numpy in front of it."""

from importlib import import_module
from types import ModuleType


def absence() -> str | None:
    """Return why the native kernels cannot be used, None if they can."""
    try:
        load()
    except ImportError as error:
        return f"the native kernels are not built ({error}); install a C++17 compiler and reinstall codesign"
    return None


def load() -> ModuleType:
    """Return the compiled module; ImportError if this installation has none."""
    return import_module("codesign._native")
