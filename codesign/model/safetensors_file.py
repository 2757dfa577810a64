"""Read the header of a safetensors file: names, types, shapes and sizes, never the weights.

The verdict is that of the reference library (safetensors/src/tensor.rs), except for what the format's text forbids and
the library lets through: keys given twice, space before the header, a tensor or a type not written in its usual form.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from codesign.errors import InputError
from codesign.files import check_json_depth
from codesign.model.config import shown
from codesign.model.cursor import Cursor, opened
from codesign.model.pickled import HEAD_BYTES, refuse_pickle
from codesign.model.stored_tensor import StoredTensor

HEADER_BYTES_MAX = 100_000_000
TENSORS_MAX = 300_000  # in one file; a header of that many is read within 10 s and 512 MiB
COMMAS_MAX = 7 * TENSORS_MAX  # a tensor of four dimensions takes seven, between it and the next included
COLONS_MAX = 5 * TENSORS_MAX  # a tensor takes four
DEPTH_MAX = 127
SIZE_MAX = 2**64 - 1
DIGITS_MAX = 400  # the library reads longer numbers as infinite and refuses them

BITS_BY_DTYPE = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """One safetensors file: its metadata, its tensors in the order of their data, its size."""

    metadata: Mapping[str, str]
    tensors: tuple[StoredTensor, ...]
    file_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path, name: str | None = None) -> SafetensorsFile:
    """Return what one file holds; `name` is the file's name where the path is that of a blob it links to."""
    named = path if name is None else path.with_name(name)
    with opened(path, 8 + HEADER_BYTES_MAX, "safetensors file") as cursor:
        refuse_pickle(named, cursor.peek(HEAD_BYTES))
        header = _Header(cursor, _read_header(cursor))
        data_bytes = cursor.remaining
        metadata = header.metadata()
        entries = sorted(header.entries(), key=attrgetter("start", "end"))
        end = 0
        for entry in entries:
            _check_entry(cursor, entry, end)
            end = entry.end
        if end != data_bytes:
            cursor.refuse(f"the tensors take {end} bytes from here, the file has {data_bytes}; they must be equal.")
        tensors = (StoredTensor(e.name, e.dtype, e.shape, e.end - e.start, named.name) for e in entries)
        return SafetensorsFile(MappingProxyType(metadata), tuple(tensors), cursor.byte_count)


def _read_header(cursor: Cursor) -> dict[str, Any]:
    """Return the header's JSON object."""
    byte_count = cursor.unsigned_64("the length of the header")
    if byte_count > HEADER_BYTES_MAX:
        cursor.refuse(f"a header of {byte_count} bytes is announced; at most {HEADER_BYTES_MAX} are allowed.", 0)
    start = cursor.offset
    data = cursor.take(byte_count, "the header")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        cursor.refuse("the header is not UTF-8.", start + error.start)
    if not text.startswith("{"):
        cursor.refuse(f"the header begins with {shown(text[:1])} instead of {{.", start)
    lists_max = 2 * TENSORS_MAX + DEPTH_MAX
    if text.count(",") > COMMAS_MAX or text.count(":") > COLONS_MAX or text.count("[") > lists_max:
        cursor.refuse(f"more values than {TENSORS_MAX} tensors take.", start)
    where = f"{cursor.where}: byte {start}"
    check_json_depth(text, where, DEPTH_MAX)
    value: dict[str, Any] = _parse(text, where)
    return value


def _parse(text: str, where: str) -> Any:
    """Return the value of strict JSON, with the reference library's view of numbers and text."""

    def refuse_constant(name: str) -> NoReturn:
        raise InputError(f"{where}: {name} is not JSON.")

    def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise InputError(f"{where}: {shown(key)} is given twice.")
            result[key] = value
        return result

    def integer(literal: str) -> int | float:
        if literal == "-0":
            return -0.0
        return int(literal) if len(literal) <= DIGITS_MAX else number(literal)

    def number(literal: str) -> float:
        value = float(literal)
        if value in (float("inf"), float("-inf")):
            raise InputError(f"{where}: {shown(literal)} is beyond the range of numbers.")
        return value

    try:
        value = json.loads(
            text, parse_constant=refuse_constant, object_pairs_hook=unique_object, parse_int=integer, parse_float=number
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        byte = 8 + len(text[: error.pos].encode("utf-8"))
        raise InputError(f"{where}: not valid JSON at byte {byte}: {error.msg}.") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: a text holds half of a surrogate pair.") from error
    return value


@dataclass(frozen=True, slots=True)
class _Header:
    """Typed access to the header's JSON object."""

    cursor: Cursor
    values: Mapping[str, Any]

    def metadata(self) -> dict[str, str]:
        """Return the texts by key."""
        metadata = self.values.get(_METADATA)
        if metadata is None:
            return {}
        if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
            self._refuse(f"{_METADATA} must be an object of texts.")
        return metadata

    def entries(self) -> list[_Entry]:
        """Return the tensors in the order of the header."""
        if len(self.values) > TENSORS_MAX:
            self._refuse(f"{len(self.values)} tensors; at most {TENSORS_MAX} are allowed.")
        return [self._entry(name, value) for name, value in self.values.items() if name != _METADATA]

    def _entry(self, name: str, value: Any) -> _Entry:
        if type(value) is not dict:
            self._refuse(f"{shown(name)} must be an object with dtype, shape and data_offsets.")
        dtype = value.get("dtype")
        shape, offsets = _sizes(value.get("shape")), _sizes(value.get("data_offsets"))
        if type(dtype) is not str or dtype not in BITS_BY_DTYPE:
            self._refuse(f"{shown(name)}: the dtype {shown(dtype)} is unknown; known are {', '.join(BITS_BY_DTYPE)}.")
        if shape is None:
            self._refuse(f"{shown(name)}: the shape {shown(value.get('shape'))} must be a list of whole numbers.")
        if offsets is None or len(offsets) != 2:
            self._refuse(f"{shown(name)}: data_offsets {shown(value.get('data_offsets'))} must be two whole numbers.")
        return _Entry(name, dtype, shape, *offsets)

    def _refuse(self, sentence: str) -> NoReturn:
        self.cursor.refuse(f"the header: {sentence}", 8)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return a list of whole numbers from 0 to SIZE_MAX, None if it is anything else."""
    if type(value) is list and all(type(size) is int and 0 <= size <= SIZE_MAX for size in value):
        return tuple(value)
    return None


def _check_entry(cursor: Cursor, entry: _Entry, expected_start: int) -> None:
    """Refuse a hole, an overlap, or a size that shape and type do not give; the library's sums end at 2^64."""
    if entry.start != expected_start or entry.end < entry.start:
        cursor.refuse(
            f"{shown(entry.name)} has data_offsets [{entry.start}, {entry.end}]; data begin where those before end, "
            f"at {expected_start}.",
            cursor.offset + min(entry.start, expected_start),
        )
    values = 1
    for size in entry.shape:
        values *= size
        if values > SIZE_MAX:
            cursor.refuse(f"{shown(entry.name)} has more than 2^64 values.", cursor.offset + entry.start)
    bits = values * BITS_BY_DTYPE[entry.dtype]
    if bits > SIZE_MAX or bits != 8 * (entry.end - entry.start):
        cursor.refuse(
            f"{shown(entry.name)} has {values} values of {entry.dtype}, which do not take the "
            f"{entry.end - entry.start} bytes given.",
            cursor.offset + entry.start,
        )
