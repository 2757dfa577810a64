"""Which kernels are here: the project's adapters, those of installed packages, and those named by the user.

A module of adapters has `all_kernels()` and `library_states()`, as `codesign.profiler.libraries` has, and may bring a
`check_output(prepared, case)` of its own for what plain PyTorch does not compute. Packages name theirs under the entry
point group `codesign.kernels`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from codesign.errors import InputError, did_you_mean
from codesign.profiler.check import Check, check_output
from codesign.profiler.kernel import Kernel, LibraryState, Prepared

OWN_MODULE = "codesign.profiler.libraries"
ENTRY_POINTS = "codesign.kernels"

CheckOutput = Callable[[Prepared, Any], Check]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The kernels of all modules, the states of their libraries, and the checks of libraries that bring their own."""

    modules: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    states: tuple[LibraryState, ...]
    checks: Mapping[str, CheckOutput]

    def version(self, kernel: Kernel) -> str:
        """Return the version of a kernel's library, empty where it does not say."""
        where = (kernel.library, kernel.device)
        return next((state.version or "" for state in self.states if (state.name, state.device) == where), "")

    def find(self, library: str, name: str, scheme: str, device: str = "cpu") -> Kernel:
        """Return one kernel; InputError if there is none of that name."""
        for kernel in self.kernels:
            if (kernel.library, kernel.name, kernel.scheme, kernel.device) == (library, name, scheme, device):
                return kernel
        raise InputError(f"no kernel {library}/{name} for {scheme} in {', '.join(self.modules)}.")

    def check_of(self, library: str) -> CheckOutput:
        """Return what checks the outputs of a library's kernels."""
        return self.checks.get(library, check_output)


def adapter_modules(named: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the modules that hold adapters: the project's, those of installed packages, the named ones."""
    installed = sorted(point.value for point in entry_points(group=ENTRY_POINTS))
    return tuple(dict.fromkeys((OWN_MODULE, *installed, *named)))


def load_catalog(modules: tuple[str, ...]) -> Catalog:
    """Return what the modules offer; InputError if one cannot be imported or is no module of adapters."""
    loaded = [_load(name) for name in modules]
    kernels = tuple(kernel for module in loaded for kernel in module.all_kernels())
    states = tuple(state for module in loaded for state in module.library_states())
    checks = {
        state.name: module.check_output
        for module in loaded
        if hasattr(module, "check_output")
        for state in module.library_states()
    }
    return Catalog(modules, kernels, states, checks)


def _load(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"the module of kernels {name!r} cannot be imported: {error}.") from error
    for function in ("all_kernels", "library_states"):
        if not callable(getattr(module, function, None)):
            raise InputError(f"the module {name!r} is no module of kernels: it has no function {function}().")
    return module


def choose_libraries(catalog: Catalog, text: str) -> tuple[str, ...]:
    """Return the libraries of a list such as `torch,onnxruntime`, or all; InputError for an unknown one."""
    known = tuple(dict.fromkeys((*(state.name for state in catalog.states), *(k.library for k in catalog.kernels))))
    if text.strip().lower() == "all":
        return known
    names = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in known:
            raise InputError(
                f'no kernels of "{name[:40]}" are known here.{did_you_mean(name[:40], known)} '
                f"Known are {', '.join(known)}."
            )
    return names
