"""A run directory as a whole: begin or resume one, append what was measured, read one or several."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codesign.codec import from_plain, to_plain
from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic
from codesign.profiler.records import FORMAT_VERSION, Measurement, measurement_from_json, measurement_json, newest
from codesign.profiler.store import (
    HEAD,
    SAMPLES,
    Appender,
    Log,
    cut_torn_tail,
    locked,
    probe_writing,
    read_log,
    sweep_temporaries,
)
from codesign.units import MEBI

HEAD_BYTES_MAX = 16 * MEBI
HARDWARE = "hardware.yaml"
SHOWN_DIFFERENCES_MAX = 10


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was not measured and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunHead:
    """What was asked and where. `critical` are the conditions that decide speed: a run of others is another run.

    `state` is running, complete, or "interrupted by SIGTERM"; a killed run stays at running. `energy` holds the
    power at rest of each device whose energy is measured, or why it is not.
    """

    format_version: int
    codesign_version: str
    commit: str
    command: str
    hw: str
    seed: int
    settings: Mapping[str, Any]
    critical: Mapping[str, str]
    environment: Mapping[str, Any]
    candidates: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    started_utc: str
    state: str
    energy: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory as read: its newest measurements and what is odd about its files."""

    folder: Path
    head: RunHead
    measurements: tuple[Measurement, ...]
    warnings: tuple[str, ...]


def read_head(folder: Path) -> RunHead:
    """Return run.json; InputError if the folder is no run directory."""
    path = folder / HEAD
    if not path.is_file():
        raise InputError(f"{folder}: not a run directory, it has no {HEAD}; `codesign profile -o {folder}` makes one.")
    value = parse_json(read_text(path, HEAD_BYTES_MAX, "run"), str(path))
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {version!r}; this codesign reads {FORMAT_VERSION}. Update codesign.")
    return from_plain(RunHead, value, str(path))


def write_head(folder: Path, head: RunHead) -> None:
    """Replace run.json whole."""
    write_atomic(folder / HEAD, to_json(to_plain(head)))


def read_run(folder: Path, salvage: bool = False) -> Run:
    """Return a run; damage is refused with its place unless `salvage` leaves it out with a warning."""
    head = read_head(folder)
    log = read_log(folder / SAMPLES, salvage)
    return Run(folder, head, newest(_measurements(folder, log)), _warnings(folder, log))


def _measurements(folder: Path, log: Log) -> tuple[Measurement, ...]:
    where = folder / SAMPLES
    return tuple(measurement_from_json(one, f"{where} record {i}") for i, one in enumerate(log.records, 1))


def _warnings(folder: Path, log: Log) -> tuple[str, ...]:
    path = folder / SAMPLES
    torn = [f"{path}: the last record was not finished ({log.torn_bytes} bytes) and is left out."]
    damaged = [f"{path}: byte {one.offset_bytes}: {one.reason}; left out." for one in log.damages]
    return tuple((torn if log.torn_bytes else []) + damaged)


class RunWriter:
    """An open run directory: what is done already, and where the rest goes."""

    def __init__(self, folder: Path, head: RunHead, known: tuple[Measurement, ...]) -> None:
        self.folder = folder
        self.head = head
        self.done = frozenset(one.key for one in known if not one.interrupted)
        self.disturbed = frozenset(one.key for one in known if one.disturbed)
        self._appender = Appender(folder / SAMPLES)

    def append(self, measurement: Measurement) -> None:
        """Write one measurement and flush it to disk: its case is finished."""
        self._appender.append(measurement_json(measurement))
        self._appender.sync()

    def note_energy(self, energy: Mapping[str, Any]) -> None:
        """Note in run.json whose energy is measured, and why that of others is not."""
        self.head = replace(self.head, energy=energy)
        write_head(self.folder, self.head)

    def finish(self, state: str) -> None:
        """Note in run.json how the run ended."""
        write_head(self.folder, replace(self.head, state=state))

    def close(self) -> None:
        """Close the log."""
        self._appender.close()


@contextlib.contextmanager
def open_run(folder: Path, head: RunHead, *, force: bool = False, force_resume: bool = False) -> Iterator[RunWriter]:
    """Begin a run, or resume the one of the same settings that lies there; the folder is locked meanwhile.

    InputError if a run of other settings lies there and not `force`, which deletes it, or if its conditions differ
    and not `force_resume`, which measures the cases anew whose speed they decide.
    """
    _make(folder)
    with locked(folder):
        sweep_temporaries(folder)
        probe_writing(folder)
        if force:
            for name in (SAMPLES, HEAD, HARDWARE):
                (folder / name).unlink(missing_ok=True)
        known = _resumed(folder, head, force_resume) if (folder / HEAD).exists() else ()
        write_head(folder, head)
        writer = RunWriter(folder, head, known)
        try:
            yield writer
        finally:
            writer.close()


def _make(folder: Path) -> None:
    if folder.is_dir():
        own = {HEAD, SAMPLES, HARDWARE, "LOCK"}
        others = [path.name for path in folder.iterdir() if path.name not in own and not path.name.startswith(".")]
        if others and not (folder / HEAD).exists():
            raise InputError(f"{folder}: holds other files, such as {others[0]}; name a new or an empty folder.")
        return
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror or error}.") from error


def _resumed(folder: Path, head: RunHead, force_resume: bool) -> tuple[Measurement, ...]:
    """Return what an earlier run measured already, after checking that this one continues it."""
    earlier = read_head(folder)
    changed = _differences({"hw": earlier.hw, "seed": earlier.seed, **earlier.settings},
                           {"hw": head.hw, "seed": head.seed, **head.settings})  # fmt: skip
    if changed:
        raise InputError(
            f"{folder}: holds a run of other settings ({changed}); name another folder, or --force deletes it."
        )
    changed = _differences(earlier.critical, head.critical)
    if changed and not force_resume:
        raise InputError(
            f"{folder}: the conditions have changed since this run began ({changed}); start a new run, or "
            "--force-resume measures the cases anew that they concern."
        )
    log = read_log(folder / SAMPLES)
    cut_torn_tail(folder / SAMPLES, log)
    return newest(_measurements(folder, log))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    shown = [f"{name}: {before.get(name)} then, {now.get(name)} now" for name in names[:SHOWN_DIFFERENCES_MAX]]
    more = len(names) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def keep_hardware_file(folder: Path, source: Path) -> None:
    """Copy the machine's own profile into the run, so that the run can be read elsewhere."""
    if source.resolve() != (folder / HARDWARE).resolve():
        shutil.copyfile(source, folder / HARDWARE)


def merge_runs(folders: tuple[Path, ...], target: Path, salvage: bool = False) -> Run:
    """Write the measurements of several runs of one machine into a new run directory; the newest of a key counts."""
    runs = [read_run(folder, salvage) for folder in folders]
    first, conditions = runs[0].head, {"hw": runs[0].head.hw, **runs[0].head.critical}
    for run in runs[1:]:
        here = {"hw": run.head.hw, **run.head.critical}
        # What only one of them names, such as the processors of a number of threads, concerns its own cases alone.
        changed = _differences({name: conditions[name] for name in here if name in conditions},
                               {name: here[name] for name in here if name in conditions})  # fmt: skip
        if changed:
            raise InputError(f"{run.folder}: measured under other conditions than {folders[0]} ({changed}).")
        conditions |= here
    if (target / HEAD).exists():
        raise InputError(f"{target}: holds a run already; name a new folder.")
    head = replace(
        first,
        critical={name: text for name, text in conditions.items() if name != "hw"},
        candidates=tuple(dict.fromkeys(name for run in runs for name in run.head.candidates)),
        skipped=tuple(dict.fromkeys(one for run in runs for one in run.head.skipped)),
        command="\n".join(dict.fromkeys(run.head.command for run in runs)),
        settings={"merged": [folder.name for folder in folders]},
        state="complete" if all(run.head.state == "complete" for run in runs) else "partial",
    )
    measurements = newest(tuple(one for run in runs for one in run.measurements))
    with open_run(target, head) as writer:
        for one in measurements:
            writer.append(one)
        profile = next((run.folder / HARDWARE for run in runs if (run.folder / HARDWARE).exists()), None)
        if profile is not None:
            keep_hardware_file(target, profile)
    return read_run(target)
