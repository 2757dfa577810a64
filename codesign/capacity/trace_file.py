"""Requests from a log, CSV or JSON lines: read line by line, so that memory grows with the requests alone."""

import csv
import datetime
import json
import math
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from codesign.capacity.requests import REQUESTS_MAX, TOKENS_MAX, Requests
from codesign.cost.arrays import FloatArray
from codesign.errors import InputError
from codesign.units import MILLI

LINE_BYTES_MAX = 2**20
SECONDS_MAX = 1e11
REJECTED_NAMED = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a kind of log; `seconds` turns its time into seconds from any fixed moment."""

    arrival: str
    prompt: str
    output: str
    seconds: Callable[[Any], float]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a log held, and what of it was left out or changed, as sentences."""

    requests: Requests
    warnings: tuple[str, ...]


def _date_s(value: Any) -> float:
    """Return the seconds of a date; more than six decimals are cut, as Python's dates hold no more."""
    text = str(value).strip()
    head, dot, decimals = text.partition(".")
    digits = decimals[: len(decimals) - len(decimals.lstrip("0123456789"))]
    whole = head + dot + digits[:6].ljust(6, "0") + decimals[len(digits) :] if dot else text
    moment = datetime.datetime.fromisoformat(whole)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


LAYOUTS: Mapping[str, Layout] = {
    "codesign": Layout("arrival_s", "prompt_tokens", "output_tokens", float),
    "Azure (AzurePublicDataset)": Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens", _date_s),
    "BurstGPT": Layout("Timestamp", "Request tokens", "Response tokens", float),
    "Mooncake": Layout("timestamp", "input_length", "output_length", lambda value: float(value) * MILLI),
    "Vidur": Layout("arrived_at", "num_prefill_tokens", "num_decode_tokens", float),
}


def read_trace(path: Path) -> Trace:
    """Return the requests of a log in order of arrival, the first at 0 s.

    Rows without a time or without tokens are left out and counted; InputError if the file is no log or holds none.
    """
    kept = (array("d"), array("q"), array("q"))
    rejected: list[str] = []
    rejected_count = 0
    for line, row in _rows(path):
        problem = _take(row, kept)
        if problem is not None:
            rejected_count += 1
            if len(rejected) < REJECTED_NAMED:
                rejected.append(f"line {line} ({problem})")
        if len(kept[0]) > REQUESTS_MAX:
            raise InputError(f"{path}: more than {REQUESTS_MAX:,} requests; give a part of the log.")
    if not kept[0]:
        why = f" All {rejected_count} were left out, such as {rejected[0]}." if rejected else ""
        raise InputError(f"{path}: this log holds no request.{why}")
    arrival_s, prompt, output = (np.array(column) for column in kept)
    more = " ..." if rejected_count > REJECTED_NAMED else ""
    warnings = [f"{rejected_count:,} rows were left out: {', '.join(rejected)}{more}."] if rejected else []
    requests, unsorted = _sorted(arrival_s, prompt, output)
    if unsorted:
        warnings.append(f"{unsorted:,} requests were logged after a later one; they were sorted by arrival.")
    return Trace(requests, tuple(warnings))


def _sorted(arrival_s: FloatArray, prompt: Any, output: Any) -> tuple[Requests, int]:
    unsorted = int(np.count_nonzero(np.diff(arrival_s) < 0))
    order = np.argsort(arrival_s, kind="stable") if unsorted else slice(None)
    return Requests(arrival_s, prompt, output).part(order).from_zero(), unsorted


def _take(row: tuple[Any, Any, Any, Layout] | str, kept: tuple[Any, Any, Any]) -> str | None:
    """Append a row to the columns; return what is wrong with it instead."""
    if isinstance(row, str):
        return row
    when, prompt, output, layout = row
    try:
        seconds = layout.seconds(when)
        tokens = tuple(_whole(value) for value in (prompt, output))
    except (TypeError, ValueError, OverflowError):
        return "no number"
    if not math.isfinite(seconds) or abs(seconds) > SECONDS_MAX:
        return f"{layout.arrival} is out of range"
    if not all(1 <= count <= TOKENS_MAX for count in tokens):
        return f"tokens must be from 1 to {TOKENS_MAX:,}"
    for column, value in zip(kept, (seconds, *tokens), strict=True):
        column.append(value)
    return None


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _rows(path: Path) -> Iterator[tuple[int, tuple[Any, Any, Any, Layout] | str]]:
    """Yield line number and values of every row, or what is wrong with the line."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: cannot read this log: it is no regular file.")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from _json_rows(path, stream) if _is_json(stream) else _csv_rows(path, stream)
    except OSError as error:
        raise InputError(f"{path}: cannot read this log: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a log must be UTF-8 text; byte {error.start} is not.") from error
    except csv.Error as error:
        raise InputError(f"{path}: not valid CSV: {error}.") from error


def _is_json(stream: TextIO) -> bool:
    start = stream.read(LINE_BYTES_MAX).lstrip()
    stream.seek(0)
    return start.startswith("{")


def _lines(path: Path, stream: TextIO) -> Iterator[str]:
    """Yield the lines, each of bounded length."""
    while line := stream.readline(LINE_BYTES_MAX):
        if len(line) == LINE_BYTES_MAX:
            raise InputError(f"{path}: a line is longer than {LINE_BYTES_MAX:,} characters; this is no log.")
        yield line


def _csv_rows(path: Path, stream: TextIO) -> Iterator[tuple[int, tuple[Any, Any, Any, Layout] | str]]:
    reader = csv.reader(_lines(path, stream))
    header = next(reader, [])
    layout = _layout_of(path, header)
    arrival, prompt, output = (header.index(name) for name in (layout.arrival, layout.prompt, layout.output))
    last = max(arrival, prompt, output)
    for row in reader:
        if len(row) > last:
            yield reader.line_num, (row[arrival], row[prompt], row[output], layout)
        elif row:
            yield reader.line_num, "too few columns"


def _json_rows(path: Path, stream: TextIO) -> Iterator[tuple[int, tuple[Any, Any, Any, Layout] | str]]:
    layout: Layout | None = None
    for number, line in enumerate(_lines(path, stream), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "not JSON"
            continue
        if not isinstance(row, dict):
            yield number, "no object"
            continue
        layout = layout or _layout_of(path, list(row))
        yield number, (row.get(layout.arrival), row.get(layout.prompt), row.get(layout.output), layout)


def _layout_of(path: Path, names: list[str]) -> Layout:
    for layout in LAYOUTS.values():
        if {layout.arrival, layout.prompt, layout.output} <= set(names):
            return layout
    known = "; ".join(f"{one.arrival}, {one.prompt}, {one.output} ({name})" for name, one in LAYOUTS.items())
    found = ", ".join(names)[:120] or "none"
    raise InputError(f"{path}: the columns {found} are not those of a log of requests. Known are {known}.")
