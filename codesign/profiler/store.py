"""The run directory: one file that is replaced whole, one log that only grows, one lock. Nothing is lost on a kill.

run.json       what was asked, of what machine, in what environment; written to a sibling and renamed
samples.jsonl  a line {"crc": ..., "rec": ...} per finished case, one write each; the newest of a key counts
LOCK           held by the process that measures: its number, machine and start
"""

import contextlib
import fcntl
import json
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codesign.errors import CapabilityError, InputError
from codesign.files import parse_json
from codesign.units import GIBI, MEBI

HEAD, SAMPLES, LOCK = "run.json", "samples.jsonl", "LOCK"
LOG_BYTES_MAX = GIBI
RECORD_BYTES_MAX = 8 * MEBI
RECORD_DEPTH_MAX = 16
PROBE_BYTES = MEBI
STALE_TEMPORARY_S = 24 * 3600.0
SYNC_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Damage:
    """A place in the log that cannot be read."""

    offset_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """The records of a log in order, what was left out, and how many bytes of it are whole lines."""

    records: tuple[dict[str, Any], ...]
    damages: tuple[Damage, ...]
    torn_bytes: int
    whole_bytes: int


def encode_record(record: dict[str, Any]) -> bytes:
    """Return the line of a record with its checksum."""
    text = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return f'{{"crc":"{_checksum(text)}","rec":{text}}}\n'.encode()


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def decode_record(line: bytes) -> dict[str, Any]:
    """Return the record of a line without its end; InputError if it is damaged."""
    head, middle, tail = b'{"crc":"', b'","rec":', b"}"
    body = line[len(head) + 8 + len(middle) : -1]
    if not line.startswith(head) or line[16:24] != middle or not line.endswith(tail):
        raise InputError("the line is not a record")
    if f"{zlib.crc32(body):08x}".encode() != line[8:16]:
        raise InputError("the checksum does not fit")
    try:
        record = parse_json(body.decode("utf-8"), "the record", RECORD_DEPTH_MAX)
    except UnicodeDecodeError as error:
        raise InputError("the record is not UTF-8") from error
    if not isinstance(record, dict):
        raise InputError("the record is not an object")
    return record


def read_log(path: Path, salvage: bool = False) -> Log:
    """Return the records; one torn last line is left out, damage inside is refused unless `salvage` leaves it out."""
    if not path.exists():
        return Log((), (), 0, 0)
    if not path.is_file() or path.stat().st_size > LOG_BYTES_MAX:
        raise InputError(f"{path}: not a log of samples: it must be a regular file of at most {LOG_BYTES_MAX:,} bytes.")
    records: list[dict[str, Any]] = []
    damages: list[Damage] = []
    torn_bytes = whole_bytes = 0
    for offset, line in _lines(path):
        if not line.endswith(b"\n"):
            torn_bytes = len(line)
            break
        whole_bytes = offset + len(line)
        try:
            records.append(decode_record(line[:-1]))
        except InputError as error:
            if not salvage:
                raise InputError(
                    f"{path}: damaged at byte {offset}: {error}. Read the rest with --salvage, or restore the file."
                ) from error
            damages.append(Damage(offset, str(error)))
    return Log(tuple(records), tuple(damages), torn_bytes, whole_bytes)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its offset; a line beyond the limit is skipped to its end and given cut short."""
    with path.open("rb") as stream:
        offset = 0
        while line := stream.readline(RECORD_BYTES_MAX):
            length = len(line)
            while not line.endswith(b"\n") and (more := stream.readline(RECORD_BYTES_MAX)):
                length += len(more)
                line = line[:64] + more[-64:]
            yield offset, line
            offset += length


class Appender:
    """Appends records, one write each, flushed to disk every second and on request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._synced_s = time.monotonic()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; CapabilityError if the device takes no more."""
        line = encode_record(record)
        if len(line) > RECORD_BYTES_MAX:
            raise InputError(f"{self._path}: a record of {len(line):,} bytes; the limit is {RECORD_BYTES_MAX:,}.")
        with _failing_writes(self._path):
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        if time.monotonic() - self._synced_s >= SYNC_INTERVAL_S:
            self.sync()

    def sync(self) -> None:
        """Flush to disk."""
        with _failing_writes(self._path):
            os.fsync(self._handle)
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Flush to disk and close."""
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._handle)
            self.sync()


@contextlib.contextmanager
def _failing_writes(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CapabilityError(
            f"{path}: writing failed: {error.strerror or error}. What was written before is whole; make room and "
            "start again."
        ) from error


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise CapabilityError(f"{path}: cannot write here: {error.strerror or error}.") from error


def cut_torn_tail(path: Path, log: Log) -> None:
    """Drop the unfinished last line, so that the next record begins on a line of its own; the lock must be held."""
    if log.torn_bytes:
        with _failing_writes(path):
            os.truncate(path, log.whole_bytes)


def probe_writing(folder: Path) -> None:
    """Raise CapabilityError if the folder does not take 1 MiB, before anything is measured; leaves nothing behind."""
    try:
        handle, name = tempfile.mkstemp(prefix=".probe.tmp-", dir=folder)
    except OSError as error:
        raise CapabilityError(f"{folder}: cannot write here: {error.strerror or error}.") from error
    try:
        rest = memoryview(bytes(PROBE_BYTES))
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except OSError as error:
        raise CapabilityError(
            f"{folder}: there is no room for measurements: {error.strerror or error}. Free some or name another folder."
        ) from error
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def sweep_temporaries(folder: Path) -> None:
    """Remove what killed writers left behind more than a day ago."""
    for path in folder.glob(".*.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_TEMPORARY_S:
                path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one writer; CapabilityError names the process that has it.

    The system lets go of the lock when its holder dies, so that a lock file of a dead process is taken over.
    """
    path = folder / LOCK
    handle = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        _take(handle, path)
        holder = {"pid": os.getpid(), "host": platform.node(), "start_s": round(time.time(), 3)}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CapabilityError(
            f"{path.parent}: process {_holder(handle)} is measuring into this folder; wait for it or name another one."
        ) from error


def _holder(handle: int) -> str:
    try:
        return str(int(json.loads(os.pread(handle, 4096, 0))["pid"]))
    except (ValueError, KeyError, TypeError):
        return "of unknown number"
