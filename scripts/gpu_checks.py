"""Whether measuring on a GPU can be trusted, from the runs of `scripts/gpu_lane --checks`: `gpu_checks.py FOLDER`.

Runs of the same kernel repeat, caches show, energy repeats, memory that does not suffice is a row. Exits 1 if not.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from codesign.hardware.file import load_hardware
from codesign.profiler.records import Measurement
from codesign.profiler.run_folder import Run, read_run

REPEAT_FRACTION = 0.03
ENERGY_FRACTION = 0.03
READ_SHARE = (0.85, 1.01)
Answer = tuple[bool, str] | None  # None: nothing was measured


def runs(folder: Path, pattern: str) -> Iterator[Run]:
    """Yield the runs of a name."""
    yield from (read_run(head.parent) for head in sorted(folder.glob(f"{pattern}/run.json")))


def timed(folder: Path, pattern: str) -> list[Measurement]:
    """Return the rows of runs of a name that are not invalid."""
    found = [one for run in runs(folder, pattern) for one in run.measurements]
    return [one for one in found if not one.is_invalid and one.summary is not None]


def median_s(one: Measurement) -> float:
    """Return the median of a row."""
    assert one.summary is not None
    return one.summary.median_s


def repeats(folder: Path) -> Answer:
    """Return whether runs of fresh processes agree."""
    medians = [median_s(one) for one in timed(folder, "repeat_*")]
    if len(medians) < 2:
        return None
    spread = max(medians) / min(medians) - 1
    return spread <= REPEAT_FRACTION, f"{len(medians)} runs of several processes differ by {spread:.1%}"


def caches(folder: Path) -> Answer:
    """Return whether weights in the cache are read faster than those that rotate, and these than emptied caches."""
    of_state = {one.case.cache: median_s(one) for one in timed(folder, "cache_*") if hasattr(one.case, "cache")}
    if len(of_state) < 3:
        return None
    hot, rotating, cold = (of_state[name] for name in ("hot", "rotating", "cold"))
    return hot < rotating <= cold, f"hot {hot:.2e} s, rotating {rotating:.2e} s, cold {cold:.2e} s"


def energy(folder: Path) -> Answer:
    """Return whether two windows of the same calls take the same joules for each."""
    joules = [one.energy.gross_joule_per_call for one in timed(folder, "joules_*") if one.energy is not None]
    if len(joules) < 2:
        return None
    spread = max(joules) / min(joules) - 1
    return spread <= ENERGY_FRACTION, f"{len(joules)} windows differ by {spread:.1%} per call"


def reading(folder: Path) -> Answer:
    """Return whether the reading kernel reaches what the machine should give, and no more."""
    path, first = folder / "roofs.json", next(runs(folder, "*"), None)
    if not path.is_file() or first is None:
        return None
    share = json.loads(path.read_text())["read_bytes_per_s"] / load_hardware(first.head.hw).memory.bandwidth_bytes_per_s
    return READ_SHARE[0] <= share <= READ_SHARE[1], f"reading reaches {share:.0%} of the nominal bandwidth"


def memory(folder: Path) -> Answer:
    """Return whether a case that does not fit is a row that says so, and the next one is measured."""
    rows = [one for run in runs(folder, "memory") for one in run.measurements]
    if not rows:
        return None
    short = [one for one in rows if any(reason.name == "oom" for reason in one.verdict.reasons)]
    fine = [one for one in rows if not one.is_invalid]
    return bool(short and fine), f"{len(short)} cases did not fit, {len(fine)} were measured"


CHECKS: dict[str, Callable[[Path], Answer]] = {
    "A12 runs repeat": repeats, "A12 caches show": caches, "A14 energy repeats": energy,
    "A14 memory is read": reading, "A56 memory runs out": memory,
}  # fmt: skip


def main() -> int:
    """Print a line per check."""
    failed = 0
    for name, check in CHECKS.items():
        answer = check(Path(sys.argv[1]))
        good, text = answer if answer is not None else (None, "nothing was measured")
        failed += good is False
        print(f"{name}: {({None: 'not measured', True: 'passed', False: 'FAILED'})[good]}, {text}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
