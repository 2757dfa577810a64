"""What a quantization config says of a module, in the words of all its dialects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from codesign.errors import InputError
from codesign.model.config import shown

Number = Literal["int", "float"]
Strategy = Literal["tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"]
BITS_MAX = 64
SIZE_MAX = 2**24


@dataclass(frozen=True, slots=True)
class Activations:
    """How activations are quantized before a multiplication."""

    number: Number
    bits: int
    dynamic: bool
    strategy: str

    def __str__(self) -> str:
        kind = "fp" if self.number == "float" else "int"
        return f"{kind}{self.bits} activations {'' if self.dynamic else 'static '}per {self.strategy}"


@dataclass(frozen=True, slots=True)
class Announced:
    """How a module is quantized; None is what the config leaves open, for `activations` 16 bits."""

    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    activations: Activations | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules that a rule matches are quantized so, or not at all where `announced` is None."""

    matches: Callable[[str], bool]
    announced: Announced | None


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization config: the first rule that matches decides, else `default`."""

    method: str = ""
    rules: tuple[Rule, ...] = ()
    default: Announced | None = None
    kv: str = ""
    warnings: tuple[str, ...] = ()

    def announced(self, module: str) -> Announced | None:
        """Return how a module is quantized, None if it is not."""
        for rule in self.rules:
            if rule.matches(module):
                return rule.announced
        return self.default


@dataclass(frozen=True, slots=True)
class Section:
    """Typed access to one object of a config; `where` names it in messages. Null counts as absent."""

    where: str
    values: Mapping[str, Any]

    def integer(self, key: str, low: int = 1, high: int = SIZE_MAX) -> int | None:
        """Return a whole number; -1 and 0 stand for "whole rows" where `low` is negative."""
        value = self.values.get(key)
        if value is not None and (type(value) is not int or not low <= value <= high):
            self.refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def boolean(self, key: str) -> bool | None:
        """Return true or false."""
        value = self.values.get(key)
        if value is not None and type(value) is not bool:
            self.refuse(key, value, "true or false")
        return value

    def text(self, key: str) -> str:
        """Return a text, empty if absent."""
        value = self.values.get(key)
        if value is not None and type(value) is not str:
            self.refuse(key, value, "a text")
        return value or ""

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, empty if absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(item) is str for item in value):
            self.refuse(key, value, "a list of texts")
        return tuple(value)

    def section(self, key: str) -> "Section | None":
        """Return an object inside this one."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, value, "an object")
        return Section(f"{self.where}: {shown(key)}", value)

    def sections(self) -> Sequence[tuple[str, "Section"]]:
        """Return all entries, each of which must be an object."""
        found = ((key, self.section(key)) for key in self.values)
        return [(key, section) for key, section in found if section is not None]

    def refuse(self, key: str, value: Any, wanted: str) -> None:
        """Raise the error about one key."""
        raise InputError(f"{self.where}: {shown(key)}: {shown(value)} is given; {wanted} is wanted.")
