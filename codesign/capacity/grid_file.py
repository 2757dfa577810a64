"""The grid of a sweep: lists of machines, models, schemes and workloads in a YAML file, every combination a case."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from codesign.errors import InputError
from codesign.files import read_text
from codesign.yaml_file import Section, parse_yaml

GRID_BYTES_MAX = 2**20
CASES_MAX = 50_000_000
COUNT_MAX, GPUS_MAX = 2**24, 1024
NAMES = ("hardware", "model", "scheme")
Values = tuple[str, ...] | tuple[int, ...]
OPTIONAL: dict[str, Values] = {"kv": ("",), "library": ("",), "gpus": (1,)}
SIZES = ("batch", "prompt", "output")


@dataclass(frozen=True, slots=True)
class Setup:
    """One model in one scheme and KV format on so many devices; empty texts mean the machine's usual choice."""

    hardware: str
    model: str
    scheme: str
    kv: str
    library: str
    gpus: int


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept; all cases of one setup are predicted together. `digest` is of everything that changes them."""

    hardware: tuple[str, ...]
    model: tuple[str, ...]
    scheme: tuple[str, ...]
    kv: tuple[str, ...]
    library: tuple[str, ...]
    gpus: tuple[int, ...]
    batch: tuple[int, ...]
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    digest: str

    @property
    def setups(self) -> Iterator[Setup]:
        """Yield every setup, always in the same order."""
        names = (self.hardware, self.model, self.scheme, self.kv, self.library, self.gpus)
        return (Setup(*one) for one in itertools.product(*names))

    @property
    def setup_count(self) -> int:
        """Return the number of setups."""
        names = (self.hardware, self.model, self.scheme, self.kv, self.library, self.gpus)
        return math.prod(map(len, names))

    @property
    def workloads(self) -> tuple[tuple[int, int, int], ...]:
        """Return every (batch, prompt, output)."""
        return tuple(itertools.product(self.batch, self.prompt, self.output))

    @property
    def case_count(self) -> int:
        """Return the number of cases."""
        return self.setup_count * len(self.batch) * len(self.prompt) * len(self.output)


def read_grid(path: Path) -> Grid:
    """Return the grid of a file; InputError names key and line of what is wrong."""
    text = read_text(path, GRID_BYTES_MAX, "grid")
    section = parse_yaml(text, str(path))
    section.check_keys((*NAMES, *SIZES), tuple(OPTIONAL))
    values: dict[str, Values] = {name: _names(section, name) for name in NAMES}
    for name, default in OPTIONAL.items():
        values[name] = default
        if name in section:
            values[name] = _numbers(section, name, GPUS_MAX) if name == "gpus" else _names(section, name)
    values |= {name: _numbers(section, name, COUNT_MAX) for name in SIZES}
    digest = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:16]
    grid = Grid(**values, digest=digest)  # type: ignore[arg-type]
    if grid.case_count > CASES_MAX:
        raise InputError(f"{path}: {grid.case_count:,} cases are too many; the limit is {CASES_MAX:,}.")
    return grid


def _names(section: Section, key: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(section.texts(key)))
    if not found:
        section.refuse(key, "this list is empty; at least one name is needed.")
    return found


def _numbers(section: Section, key: str, most: int) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(section.integers(key, 1, most)))
    if not found:
        section.refuse(key, "this list is empty; at least one number is needed.")
    return found
