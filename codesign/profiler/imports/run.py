"""A foreign file to a run directory."""

import datetime
import hashlib
import importlib
from pathlib import Path

from codesign import __version__
from codesign.errors import InputError
from codesign.hardware.file import load_hardware
from codesign.profiler.imports import FORMATS
from codesign.profiler.imports.imported import Imported, ImportedRow
from codesign.profiler.records import FORMAT_VERSION, Measurement, Procedure, record_key
from codesign.profiler.run_folder import Run, RunHead, keep_hardware_file, open_run, read_run
from codesign.profiler.statistics import summarize
from codesign.profiler.store import HEAD
from codesign.profiler.verdict import Conditions, Kind, Reason, Verdict

FEW_SAMPLES = 5  # llama-bench repeats five times unless told otherwise


def import_run(source: Path, format_: str, hw: str, folder: Path) -> Run:
    """Write what a file holds into a new run directory and return it; InputError if it holds nothing."""
    hardware = load_hardware(hw)
    imported: Imported = importlib.import_module(FORMATS[format_]).read(source)
    if not imported.rows:
        told = "; ".join(dict.fromkeys(one.reason for one in imported.skipped[:5]))
        raise InputError(f"{source}: holds no measurement that can be kept: {told or 'it is empty'}.")
    if (folder / HEAD).exists():
        raise InputError(f"{folder}: holds a run already; name a new folder.")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    critical = {"source": f"{format_} {digest}"}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = RunHead(
        format_version=FORMAT_VERSION,
        codesign_version=__version__,
        commit="",
        command=f"codesign records import {source.name} --format {format_}",
        hw=hardware.name,
        seed=0,
        settings={"imported": source.name, "format": format_, "sha256": digest},
        critical=critical,
        environment={},
        candidates=tuple(dict.fromkeys(f"{row.library}/{row.kernel}" for row in imported.rows)),
        skipped=imported.skipped,
        started_utc=now,
        state="complete",
    )
    with open_run(folder, head) as writer:
        if Path(hw).is_file():
            keep_hardware_file(folder, Path(hw))
        for row in imported.rows:
            writer.append(_measurement(row, hardware.name, critical, now))
    return read_run(folder)


def _measurement(row: ImportedRow, hw: str, critical: dict[str, str], now: str) -> Measurement:
    few = f"{row.count} samples are behind it" if row.count < FEW_SAMPLES else ""
    reasons = tuple(Reason(name, text) for name, text in (("imported", row.doubt), ("few_samples", few)) if text)
    return Measurement(
        key=record_key(row.library, row.library_version, row.kernel, row.case, critical),
        hw=hw,
        library=row.library,
        library_version=row.library_version,
        kernel=row.kernel,
        case=row.case,
        samples_s=row.samples_s,
        summary=summarize(row.samples_s),
        read_bytes=None,
        flop=getattr(row.case, "flop", None),
        math_dtype="",
        check=None,
        procedure=Procedure(now, (), 1, None, (), {**row.notes, "sample_count": row.count}),
        conditions=Conditions(),
        verdict=Verdict(Kind.SUSPECT if reasons else Kind.VALID, reasons),
    )
