"""The keys and values at the start of a GGUF file. Source: ggml-org/ggml, docs/gguf.md."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from codesign.errors import InputError
from codesign.model.config import shown
from codesign.model.cursor import Cursor

KEYS_MAX = 65_536
KEY_BYTES_MAX = 65_535
TEXT_BYTES_MAX = 2**24
ARRAY_KEPT_MAX = 10_000  # one number per block fits; a vocabulary does not
VALUES_KEPT_MAX = 10**6

_KEY_BYTES_LEAST = 8 + 1 + 4 + 1  # a key of one letter, its type, a value of one byte
_BOOLEAN, _TEXT, _ARRAY = 7, 8, 9
_NUMBERS = {
    number: (name, struct.Struct(f"<{code}"))
    for number, name, code in (
        (0, "uint8", "B"), (1, "int8", "b"), (2, "uint16", "H"), (3, "int16", "h"), (4, "uint32", "I"),
        (5, "int32", "i"), (6, "float32", "f"), (_BOOLEAN, "bool", "B"), (10, "uint64", "Q"), (11, "int64", "q"),
        (12, "float64", "d"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnreadArray:
    """A list of texts, or one too long to keep: only its element type and its length are known."""

    element: str
    count: int


Value = int | float | bool | str | tuple[int | float | bool, ...] | UnreadArray
T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """The values by key; `where` is the file named in messages."""

    where: str
    values: Mapping[str, Value]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def value(self, key: str, wanted: type[T]) -> T:
        """Return the value of a key that must be there and of the wanted type."""
        if key not in self.values:
            raise InputError(f"{self.where}: the key {shown(key)} is missing; {_kind(wanted)} is wanted.")
        found = self.values[key]
        if type(found) is not wanted:
            given = f"a list of {len(found)} values" if isinstance(found, tuple) else _kind(type(found))
            raise InputError(f"{self.where}: the key {shown(key)} holds {given}; {_kind(wanted)} is wanted.")
        return found


def _kind(python_type: type[object]) -> str:
    names = {int: "a whole number", float: "a number with a point", bool: "true or false", str: "a text"}
    return names.get(python_type, "a list")


def read_metadata(cursor: Cursor, key_count: int) -> GgufMetadata:
    """Return `key_count` keys with their values; their count was checked with `check_key_count`."""
    values: dict[str, Value] = {}
    budget = _Budget(VALUES_KEPT_MAX)
    for _ in range(key_count):
        start = cursor.offset
        key = cursor.text(KEY_BYTES_MAX, "a key")
        if not key or not key.isprintable():
            cursor.refuse(f"the key {shown(key)} is empty or not printable.", start)
        if key in values:
            cursor.refuse(f"the key {shown(key)} appears twice.", start)
        values[key] = _value(cursor, key, budget)
    return GgufMetadata(cursor.where, MappingProxyType(values))


def check_key_count(cursor: Cursor, key_count: int, offset: int) -> None:
    """Refuse a count that the rest of the file cannot hold."""
    if key_count > KEYS_MAX or key_count * _KEY_BYTES_LEAST > cursor.remaining:
        fitting = min(KEYS_MAX, cursor.remaining // _KEY_BYTES_LEAST)
        cursor.refuse(f"{key_count} keys are announced; at most {fitting} are possible here.", offset)


class _Budget:
    """How many values of lists may still be kept."""

    def __init__(self, left: int) -> None:
        self.left = left


def _value(cursor: Cursor, key: str, budget: _Budget) -> Value:
    start = cursor.offset
    number = cursor.unsigned_32("a value type")
    if number == _TEXT:
        return cursor.text(TEXT_BYTES_MAX, f"the text of {shown(key)}")
    if number == _ARRAY:
        return _array(cursor, key, budget)
    if number not in _NUMBERS:
        cursor.refuse(f"the key {shown(key)} has the unknown value type {number}.", start)
    return next(_decoded(cursor, number, 1))


def _array(cursor: Cursor, key: str, budget: _Budget) -> Value:
    start = cursor.offset
    number = cursor.unsigned_32("an element type")
    count = cursor.unsigned_64("the length of a list")
    if number == _TEXT:
        cursor.skip_texts(count, TEXT_BYTES_MAX, f"a text in the list {shown(key)}")
        return UnreadArray("text", count)
    if number not in _NUMBERS:
        cursor.refuse(f"the list {shown(key)} has the element type {number}, which is unknown or a list.", start)
    name, layout = _NUMBERS[number]
    if count > ARRAY_KEPT_MAX:
        cursor.skip(count * layout.size, f"the list {shown(key)} of {count} values")
        return UnreadArray(name, count)
    budget.left -= count
    if budget.left < 0:
        cursor.refuse(f"more than {VALUES_KEPT_MAX} values in lists; this is no checkpoint.", start)
    return tuple(_decoded(cursor, number, count))


def _decoded(cursor: Cursor, number: int, count: int) -> Iterator[int | float | bool]:
    name, layout = _NUMBERS[number]
    start = cursor.offset
    data = cursor.take(count * layout.size, f"{count} values of type {name}")
    for at, (value,) in enumerate(layout.iter_unpack(data)):
        if number == _BOOLEAN and value > 1:
            cursor.refuse(f"{value} is given; a truth value is 0 or 1.", start + at)
        yield bool(value) if number == _BOOLEAN else value
