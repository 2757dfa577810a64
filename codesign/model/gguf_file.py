"""Read the header of a GGUF file, version 2 or 3, whole or split: metadata and tensor table, never the weights.

Layout: ggml-org/ggml, docs/gguf.md. The rules are those of the engine's own reader (ggml/src/gguf.cpp), which wants the
tensors in file order without gaps, and in addition the budgets below.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from codesign.errors import InputError
from codesign.model.config import shown
from codesign.model.cursor import Cursor, opened
from codesign.model.ggml_types import GGML_TYPES
from codesign.model.gguf_metadata import GgufMetadata, check_key_count, read_metadata
from codesign.model.pickled import HEAD_BYTES, refuse_pickle
from codesign.model.stored_tensor import StoredTensor
from codesign.model.weight_paths import sibling

HEADER_BYTES_MAX = 2**28
TENSORS_MAX = 10**6
NAME_BYTES_MAX = 1024
DIMENSIONS_MAX = 4
VALUES_MAX = 2**63 - 1  # ggml counts the values of a tensor in an int64_t
ALIGNMENT_MAX = 2**20
PARTS_MAX = 10_000

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_TENSOR_BYTES_LEAST = 8 + 1 + 4 + 4 + 8  # a name of one letter, no dimensions, the type, the offset
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One GGUF checkpoint: the metadata of its first file, the tensors and the bytes of all of its files."""

    metadata: GgufMetadata
    tensors: tuple[StoredTensor, ...]
    file_bytes: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the tensor table; `offset` counts from the start of the data and stands at byte `offset_at`."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int
    offset_at: int


def read_gguf(path: Path) -> GgufFile:
    """Return what a GGUF file holds; any part of a split one stands for all of them."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        whole = _read_part(path, path.name)
        count = whole.metadata.value("split.count", int) if "split.count" in whole.metadata else 1
        if count > 1:
            raise InputError(
                f"{path}: the file says it is one of {count} parts; their names must end in -00001-of-{count:05}.gguf."
            )
        return whole
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count <= PARTS_MAX:
        raise InputError(f"{path}: part {number} of {count}; parts count from 1, and at most {PARTS_MAX} are allowed.")
    names = [f"{match['stem']}-{part:05}-of-{count:05}.gguf" for part in range(1, count + 1)]
    paths = [path if name == path.name else sibling(path, name) for name in names]
    return _joined([_read_part(*part) for part in zip(paths, names, strict=True)], names)


def _joined(parts: list[GgufFile], names: list[str]) -> GgufFile:
    holders: dict[str, str] = {}
    for number, (part, name) in enumerate(zip(parts, names, strict=True)):
        _check_part(part.metadata, number, len(parts))
        for tensor in part.tensors:
            other = holders.setdefault(tensor.name, name)
            if other != name:
                raise InputError(
                    f"{part.metadata.where}: the tensor {shown(tensor.name)} is also in {shown(other)}; parts of one "
                    "split do not overlap."
                )
    first = parts[0].metadata
    if "split.tensors.count" in first and first.value("split.tensors.count", int) != len(holders):
        announced = first.value("split.tensors.count", int)
        raise InputError(f"{first.where}: {announced} tensors are announced, the parts hold {len(holders)}.")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    return GgufFile(first, tensors, sum(part.file_bytes for part in parts))


def _check_part(metadata: GgufMetadata, number: int, count: int) -> None:
    if count == 1 and "split.count" not in metadata:
        return
    given = (metadata.value("split.no", int), metadata.value("split.count", int))
    if given != (number, count):
        raise InputError(
            f"{metadata.where}: the file says it is part {given[0] + 1} of {given[1]}; its name says part {number + 1} "
            f"of {count}."
        )


def _read_part(path: Path, name: str) -> GgufFile:
    """Return what one file holds; `name` is its name where the path is that of a blob it links to."""
    with opened(path, HEADER_BYTES_MAX, "GGUF file") as cursor:
        refuse_pickle(path.with_name(name), cursor.peek(HEAD_BYTES))
        tensor_count, key_count = _read_counts(cursor)
        metadata = read_metadata(cursor, key_count)
        alignment = _alignment(cursor, metadata)
        rows = _read_rows(cursor, tensor_count)
        data_start = -(-cursor.offset // alignment) * alignment
        if rows and data_start > cursor.byte_count:
            cursor.refuse(f"the data of the tensors begin at byte {data_start}, beyond the end of the file.")
        byte_counts = _byte_counts(cursor, rows, alignment, cursor.byte_count - data_start)
        return GgufFile(metadata, _stored(rows, byte_counts, name, data_start), cursor.byte_count)


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    """Return the number of tensors and of keys."""
    magic = cursor.take(4, "the mark GGUF")
    if magic != _MAGIC:
        cursor.refuse(f"not a GGUF file: it begins with {magic!r} instead of {_MAGIC!r}.", 0)
    version = cursor.unsigned_32("the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        why = "the file is big-endian" if swapped else f"GGUF version {version} is given"
        cursor.refuse(f"{why}; little-endian files of version 2 or 3 can be read.", 4)
    tensor_count = cursor.unsigned_64("the number of tensors")
    key_count = cursor.unsigned_64("the number of keys")
    _check_tensor_count(cursor, tensor_count, 8)
    check_key_count(cursor, key_count, 16)
    return tensor_count, key_count


def _check_tensor_count(cursor: Cursor, count: int, offset: int) -> None:
    if count > TENSORS_MAX or count * _TENSOR_BYTES_LEAST > cursor.remaining:
        fitting = min(TENSORS_MAX, cursor.remaining // _TENSOR_BYTES_LEAST)
        cursor.refuse(f"{count} tensors are announced; at most {fitting} are possible here.", offset)


def _alignment(cursor: Cursor, metadata: GgufMetadata) -> int:
    key = "general.alignment"
    alignment = metadata.values.get(key, _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        given = "no whole number" if type(alignment) is not int else f"{alignment}"
        cursor.refuse(f"{key} is {given}; a power of two up to {ALIGNMENT_MAX} is allowed.")
    return alignment


def _read_rows(cursor: Cursor, count: int) -> list[_Row]:
    _check_tensor_count(cursor, count, cursor.offset)
    rows: list[_Row] = []
    names: set[str] = set()
    for _ in range(count):
        start = cursor.offset
        name = cursor.text(NAME_BYTES_MAX, "the name of a tensor")
        if not name or not name.isprintable() or "/" in name or "\\" in name:
            cursor.refuse(f"the tensor name {shown(name)} is empty, not printable or a path.", start)
        if name in names:
            cursor.refuse(f"the tensor {shown(name)} appears twice.", start)
        names.add(name)
        shape = _shape(cursor, name)
        type_at = cursor.offset
        type_number = cursor.signed_32("the type of a tensor")
        _check_blocks(cursor, name, shape, type_number, type_at)
        offset_at = cursor.offset
        rows.append(_Row(name, shape, type_number, cursor.unsigned_64("the offset of a tensor"), offset_at))
    return rows


def _shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    """Return the dimensions, rows first; in the file the row length comes first."""
    start = cursor.offset
    count = cursor.unsigned_32("the number of dimensions")
    if count > DIMENSIONS_MAX:
        cursor.refuse(f"{shown(name)} has {count} dimensions; at most {DIMENSIONS_MAX} are allowed.", start)
    dimensions: list[int] = []
    values = 1
    for _ in range(count):
        at = cursor.offset
        dimensions.append(cursor.signed_64("a dimension"))
        values *= dimensions[-1]
        if dimensions[-1] < 0 or values > VALUES_MAX:
            cursor.refuse(f"{shown(name)} has a dimension of {dimensions[-1]}: negative, or too many values.", at)
    return tuple(reversed(dimensions))


def _check_blocks(cursor: Cursor, name: str, shape: tuple[int, ...], type_number: int, at: int) -> None:
    row_values = shape[-1] if shape else 1
    if type_number in GGML_TYPES and row_values % GGML_TYPES[type_number].block_values:
        ggml_type = GGML_TYPES[type_number]
        cursor.refuse(
            f"{shown(name)} has rows of {row_values} values; the blocks of {ggml_type.name} have "
            f"{ggml_type.block_values}, and a row holds whole blocks.",
            at,
        )


def _byte_counts(cursor: Cursor, rows: list[_Row], alignment: int, data_bytes: int) -> list[int]:
    """Return the bytes of every tensor; each must begin where the one before it ends, and end within the file."""
    byte_counts = []
    ends = [*(row.offset for row in rows), data_bytes][1:]
    expected = 0
    for row, next_offset in zip(rows, ends, strict=True):
        if row.offset != expected:
            sentence = f"{shown(row.name)} is given the data offset {row.offset}; {expected} is expected."
            cursor.refuse(sentence, row.offset_at)
        # How long a tensor of an unknown type is, only the next one tells.
        known = row.type_number in GGML_TYPES
        byte_count = _byte_count(row) if known else next_offset - row.offset
        if byte_count < 0 or row.offset + byte_count > data_bytes:
            there = max(data_bytes - row.offset, 0)
            sentence = f"{shown(row.name)} takes {byte_count} bytes of data; the file has {there} there: it is cut off."
            cursor.refuse(sentence if known else f"{shown(row.name)} ends beyond the file.", row.offset_at)
        byte_counts.append(byte_count)
        expected = -(-(row.offset + byte_count) // alignment) * alignment
    return byte_counts


def _byte_count(row: _Row) -> int:
    ggml_type = GGML_TYPES[row.type_number]
    values = 1
    for dimension in row.shape:
        values *= dimension
    return values // ggml_type.block_values * ggml_type.block_bytes


def _stored(rows: list[_Row], byte_counts: list[int], file: str, data_start: int) -> tuple[StoredTensor, ...]:
    types = {row.type_number: f"type {row.type_number}" for row in rows}
    types |= {number: ggml_type.name for number, ggml_type in GGML_TYPES.items()}
    return tuple(
        StoredTensor(row.name, types[row.type_number], row.shape, byte_count, file, data_start + row.offset)
        for row, byte_count in zip(rows, byte_counts, strict=True)
    )
