"""Read the keys of a Hugging Face config.json with types and bounds; whatever is read makes up the digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from codesign.errors import InputError

BLOCKS_MAX = 10**4
HIDDEN_MAX = 2**20
INTERMEDIATE_MAX = 2**24
VOCABULARY_MAX = 2**24
EXPERTS_MAX = 2**14
CONTEXT_MAX = 2**28
LAYER_TYPES = ("full_attention", "sliding_attention")

Key = str | tuple[str, ...]


class Config:
    """The keys of one config.json. Null counts as absent except where a method says otherwise.

    A key may be a tuple of spellings; the first that the file has is read.
    """

    def __init__(self, values: Mapping[str, Any], where: str, architecture: str, prefix: str = "") -> None:
        self.where = where
        self.architecture = architecture
        self._values = values
        self._prefix = prefix
        self._read: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """Return a hash of all values read so far, defaults included and spellings unified."""
        canonical = json.dumps([self.architecture, self._read], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def refuse(self, key: Key, sentence: str) -> NoReturn:
        """Raise the error about one key."""
        raise InputError(f"{self.where}: {self._prefix}{self._spelling(key)}: {sentence}")

    def has(self, key: str) -> bool:
        """Return whether the file gives the key, null included."""
        return key in self._values

    def section(self, key: str, architecture: str) -> "Config":
        """Return the config inside this one."""
        value = self._values.get(key)
        if not isinstance(value, dict):
            self._refuse_value(key, value, "an object")
        return Config(value, self.where, architecture, f"{self._prefix}{key}.")

    def integer(self, key: Key, high: int, default: int | None = None, low: int = 1) -> int:
        """Return a whole number from `low` to `high`; without a default the key must be given."""
        value = self.optional_integer(key, high, default, low)
        if value is None:
            self._refuse_value(key, None, _range(low, high))
        return value

    def optional_integer(self, key: Key, high: int, default: int | None = None, low: int = 1) -> int | None:
        """Return a whole number from `low` to `high`, the default if the key is absent or null."""
        value = self._values.get(self._spelling(key))
        if value is None:
            value = default
        elif type(value) is not int or not low <= value <= high:
            self._refuse_value(key, value, _range(low, high))
        self._read[_first(key)] = value
        return value

    def boolean(self, key: Key, default: bool) -> bool:
        """Return true or false, the default if the key is absent or null."""
        value = self._values.get(self._spelling(key))
        if value is None:
            value = default
        elif type(value) is not bool:
            self._refuse_value(key, value, "true or false")
        self._read[_first(key)] = value
        return value

    def integers(self, key: str, length_max: int, high: int) -> tuple[int, ...]:
        """Return a list of whole numbers from 0 to `high`; empty if the key is absent or null."""
        values = self._sequence(key, length_max)
        for value in values:
            if type(value) is not int or not 0 <= value <= high:
                self._refuse_value(key, value, f"in this list {_range(0, high)}")
        return tuple(values)

    def layer_types(self, block_count: int) -> tuple[str, ...] | None:
        """Return the kind of attention of each block, None if the key is absent or null."""
        values = self._sequence("layer_types", BLOCKS_MAX)
        if not values:
            return None
        if len(values) != block_count:
            self.refuse(
                "layer_types", f"{len(values)} entries are given; one for each of the {block_count} blocks is allowed."
            )
        for value in values:
            if value not in LAYER_TYPES:
                self._refuse_value("layer_types", value, f"in this list only {' or '.join(LAYER_TYPES)}")
        return tuple(values)

    def _sequence(self, key: str, length_max: int) -> Sequence[Any]:
        value = self._values.get(key)
        if value is None:
            value = []
        if not isinstance(value, list) or len(value) > length_max:
            self._refuse_value(key, value, f"a list of at most {length_max} entries")
        self._read[key] = value
        return value

    def _refuse_value(self, key: Key, value: Any, allowed: str) -> NoReturn:
        given = "nothing is given" if value is None else f"{shown(value)} is given"
        self.refuse(key, f"{given}; {allowed} is allowed.")

    def _spelling(self, key: Key) -> str:
        if isinstance(key, str):
            return key
        return next((one for one in key if self._values.get(one) is not None), key[0])


def shown(value: Any) -> str:
    """Return an untrusted value for a message: as JSON, escaped and cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _first(key: Key) -> str:
    return key if isinstance(key, str) else key[0]


def _range(low: int, high: int) -> str:
    return f"a whole number from {low} to {high}"
