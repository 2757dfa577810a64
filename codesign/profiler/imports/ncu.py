"""Nsight Compute's table (`ncu --csv`, one row per metric; or `--page raw`, one row per launch and a row of units).

Kernels are replayed and clocks pinned while Nsight Compute measures, so that its times are not those of a plain run:
rows are suspect. Columns as in NVIDIA's Nsight Compute CLI documentation.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from codesign.errors import InputError
from codesign.files import read_text
from codesign.profiler.imports.imported import FILE_BYTES_MAX, Imported, ImportedRow, seconds, text_of
from codesign.profiler.records import ForeignCase
from codesign.profiler.run_folder import Skipped

DURATION = "gpu__time_duration.sum"
DURATION_NAMES = (DURATION, "Duration")  # as metric, and in the section GPU Speed Of Light Throughput
UNITS_S = {"nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3, "second": 1.0,
           "s": 1.0}  # fmt: skip
PARAMETERS = ("Grid Size", "Block Size", "CC")
DOUBT = "measured under a profiler, which replays kernels and pins clocks"

Launch = dict[str, str]


def read(path: Path) -> Imported:
    """Return the kernels of a table, the launches of equal kernels and sizes as samples of one row."""
    samples: dict[tuple[str, ...], list[float]] = {}
    skipped = []
    for line, launch in _durations(path):
        try:
            unit = UNITS_S[launch["unit"]]
            time_s = seconds(launch["value"], unit, "the duration")
        except KeyError:
            skipped.append(Skipped(f"line {line}", f"the unit {launch['unit']!r} of the duration is not known"))
        except InputError as error:
            skipped.append(Skipped(f"line {line}", str(error)))
        else:
            key = (launch["Kernel Name"], *(launch.get(name, "") for name in PARAMETERS))
            samples.setdefault(key, []).append(time_s)
    rows = [
        ImportedRow(
            "ncu", "", name, ForeignCase(name, {k: v for k, v in zip(PARAMETERS, values, strict=True) if v}),
            tuple(times), len(times), {}, DOUBT,
        )
        for (name, *values), times in samples.items()
    ]  # fmt: skip
    return Imported(tuple(rows), tuple(skipped))


def _durations(path: Path) -> Iterator[tuple[int, Launch]]:
    """Yield the line and the columns of every duration, with its value and unit."""
    lines = [line for line in read_text(path, FILE_BYTES_MAX, "table of Nsight Compute").splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise InputError(f'{path}: no table of Nsight Compute: no line begins with "ID"; write it with ncu --csv.')
    table = list(csv.reader(lines[start:]))
    header, rows = [text_of(cell) for cell in table[0]], table[1:]
    if "Kernel Name" not in header:
        raise InputError(f'{path}: the column "Kernel Name" is missing.')
    is_long = "Metric Name" in header
    if not is_long and DURATION not in header:
        raise InputError(f"{path}: the metric {DURATION} is missing; measure it with --metrics {DURATION}.")
    units = dict(zip(header, rows[0], strict=False)) if rows and not is_long else {}
    for i, cells in enumerate(rows[0 if is_long else 1 :], start + (2 if is_long else 3)):
        launch = dict(zip(header, map(text_of, cells), strict=False))
        if is_long and launch.get("Metric Name") in DURATION_NAMES and launch.get("Metric Value"):
            yield i, {**launch, "value": launch["Metric Value"], "unit": launch.get("Metric Unit", "")}
        elif not is_long and launch.get(DURATION):
            yield i, {**launch, "value": launch[DURATION], "unit": text_of(units.get(DURATION))}
