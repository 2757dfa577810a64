"""Read untrusted YAML within bounds: mappings, lists and scalars, numbers as in YAML 1.2, a line for every message.

Only the pure-Python parser of PyYAML is used (the C one crashes on deep nesting), and only its events: no object is
constructed from a tag. `Section` gives typed access; its errors read `FILE:LINE: key: what was given, what is allowed.`
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from codesign.errors import InputError, did_you_mean
from codesign.files import read_text

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_NUMBER_LENGTH = 40
MAX_TEXT_LENGTH = 1000

_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")
_LEADING_ZERO = re.compile(r"[-+]?0\d")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")


def _shown(text: str, max_length: int = 60) -> str:
    """Return text that is safe to print: bounded, no control characters."""
    shown = text if len(text) <= max_length else f"{text[: max_length - 3]}..."
    return shown if shown.isprintable() else ascii(shown)[1:-1]


@dataclass(frozen=True, slots=True)
class Scalar:
    """A word of the file; a quoted one is always text."""

    text: str
    quoted: bool
    line: int

    def __str__(self) -> str:
        return f'"{_shown(self.text)}"' if self.quoted or self.text == "" else _shown(self.text)

    @property
    def sort(self) -> str:
        """Return what the word is, for messages."""
        if not self.quoted and self.text in _NULLS:
            return "nothing"
        if not self.quoted and self.text in _BOOLEANS:
            return "a truth value"
        return "a number" if self.number is not None else "text"

    @property
    def number(self) -> float | None:
        """Return the number (possibly NaN or infinite), or None if the word is none."""
        if self.quoted or len(self.text) > MAX_NUMBER_LENGTH or _LEADING_ZERO.match(self.text):
            return None
        if _NUMBER.fullmatch(self.text):
            return float(self.text)
        return float(self.text.replace(".", "", 1)) if _NOT_FINITE.fullmatch(self.text) else None


@dataclass(slots=True)
class Items:
    """A list."""

    values: "list[Node]"
    line: int

    def __str__(self) -> str:
        return "a list"


@dataclass(slots=True)
class Entries:
    """A mapping; `pending_key` is set while its value is being read."""

    values: "dict[str, Node]"
    key_lines: dict[str, int]
    line: int
    pending_key: str | None = None

    def __str__(self) -> str:
        return "a mapping"


Node = Scalar | Items | Entries


class _EventParser(Reader, Scanner, Parser):
    """Text to events; no composer, resolver or constructor."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)

    def events(self) -> Iterator[Event]:
        while self.check_event():
            yield self.get_event()  # type: ignore[no-untyped-call]


class _Builder:
    """Nodes from events, without recursion; refuses what a plain data file never needs."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.root: Node | None = None
        self._open: list[Items | Entries] = []
        self._documents = 0
        self._nodes = 0

    def refuse(self, line: int, sentence: str) -> NoReturn:
        raise InputError(f"{self.where}:{line}: {sentence}")

    def add(self, event: Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, DocumentStartEvent):
            self._start_document(event, line)
        elif isinstance(event, NodeEvent):
            self._refuse_magic(event, line)
            self._place(event, line)
        elif isinstance(event, CollectionEndEvent):
            self._open.pop()

    def _start_document(self, event: DocumentStartEvent, line: int) -> None:
        self._documents += 1
        if self._documents > 1:
            self.refuse(line, "a second YAML document starts here; keep one per file.")
        if event.version or event.tags:
            self.refuse(line, "a % directive; remove it.")

    def _refuse_magic(self, event: NodeEvent, line: int) -> None:
        if isinstance(event, AliasEvent):
            self.refuse(line, f"the alias *{_shown(str(event.anchor))} is not allowed; write the value out.")
        if event.anchor is not None:
            self.refuse(
                line, f"the anchor &{_shown(event.anchor)} is not allowed; write values out where they are used."
            )
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            self.refuse(line, f"the tag {_shown(event.tag)} is not allowed; use plain values.")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self.refuse(line, f"more than {MAX_NODES} values; this is no file of ours.")

    def _place(self, event: NodeEvent, line: int) -> None:
        parent = self._open[-1] if self._open else None
        if isinstance(parent, Entries) and parent.pending_key is None:
            self._set_key(parent, event, line)
            return
        node = self._node(event, line)
        if isinstance(parent, Entries) and parent.pending_key is not None:
            parent.values[parent.pending_key] = node
            parent.pending_key = None
        elif isinstance(parent, Items):
            parent.values.append(node)
        else:
            self.root = node
        if not isinstance(node, Scalar):
            self._open.append(node)
            if len(self._open) > MAX_DEPTH:
                self.refuse(line, f"nested deeper than {MAX_DEPTH} levels.")

    def _node(self, event: NodeEvent, line: int) -> Node:
        if isinstance(event, ScalarEvent):
            return Scalar(str(event.value), event.style is not None, line)
        return Entries({}, {}, line) if isinstance(event, MappingStartEvent) else Items([], line)

    def _set_key(self, parent: Entries, event: NodeEvent, line: int) -> None:
        if not isinstance(event, ScalarEvent):
            self.refuse(line, "a list or mapping as key; keys are words.")
        key = str(event.value)
        if key == "<<":
            self.refuse(line, "the merge key << is not allowed; write the values out.")
        if key in parent.values:
            self.refuse(line, f"{_shown(key)}: the key is already on line {parent.key_lines[key]}; remove one.")
        parent.pending_key = key
        parent.key_lines[key] = line


def read_yaml(path: Path, what: str) -> "Section":
    """Return the top mapping of a YAML file; `what` names the kind of file in messages."""
    return parse_yaml(read_text(path, MAX_BYTES, what), str(path))


def parse_yaml(text: str, where: str) -> "Section":
    """Return the top mapping of YAML text; `where` is the file named in messages."""
    builder = _Builder(where)
    try:
        for event in _EventParser(text).events():
            builder.add(event)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(
            f"{where}{line}: not valid YAML: {_shown(error.problem or error.context or '', 120)}."
        ) from error
    except YAMLError as error:  # a character that YAML forbids
        raise InputError(f"{where}: not valid YAML: {_shown(' '.join(str(error).split()), 120)}.") from error
    except (
        ValueError,
        OverflowError,
    ) as error:  # leaked by PyYAML: escapes beyond Unicode, huge version numbers
        raise InputError(f"{where}: not valid YAML: {_shown(str(error), 120)}.") from error
    root = builder.root
    if root is None or (isinstance(root, Scalar) and root.sort == "nothing"):
        raise InputError(f"{where}: the file is empty; a mapping of keys to values is wanted.")
    if not isinstance(root, Entries):
        raise InputError(f"{where}:{root.line}: {root} at the top; a mapping of keys to values is wanted.")
    return Section(where, "", root)


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of a file with typed access; `path` is its dotted key, empty at the top."""

    where: str
    path: str
    entries: Entries

    def __contains__(self, key: str) -> bool:
        return key in self.entries.values

    def keys(self) -> tuple[str, ...]:
        """Return the keys in the order of the file."""
        return tuple(self.entries.values)

    def line(self, key: str) -> int:
        """Return the line of a key, or of the section if the key is absent."""
        return self.entries.key_lines.get(key, self.entries.line)

    def full_key(self, key: str) -> str:
        """Return the dotted key."""
        return f"{self.path}.{key}" if self.path else key

    def refuse(self, key: str, sentence: str) -> NoReturn:
        """Raise InputError with file, line and dotted key."""
        raise InputError(f"{self.where}:{self.line(key)}: {_shown(self.full_key(key), 120)}: {sentence}")

    def check_keys(self, required: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Refuse unknown keys, with the nearest known one, and name missing keys."""
        required = tuple(required)
        known = (*required, *optional)
        for key in self.keys():
            if key not in known:
                self._refuse_unknown(key, known)
        missing = [key for key in required if key not in self]
        if missing:
            named = self.path or "the file"
            raise InputError(f"{self.where}:{self.entries.line}: {named}: missing {', '.join(missing)}.")

    def _refuse_unknown(self, key: str, known: tuple[str, ...]) -> NoReturn:
        with_unit = [name for name in known if name.startswith(f"{key}_")]
        if with_unit:
            self.refuse(key, f"a number needs its unit in the key; write {' or '.join(with_unit)}.")
        suggestion = did_you_mean(key[:80], known)
        self.refuse(key, f"unknown key.{suggestion}" if suggestion else f"unknown key; allowed are {', '.join(known)}.")

    def _node(self, key: str) -> Node:
        if key not in self:
            self.refuse(key, "missing.")
        return self.entries.values[key]

    def _scalar(self, key: str, wanted: str) -> Scalar:
        node = self._node(key)
        if not isinstance(node, Scalar):
            self.refuse(key, f"{node} is given; {wanted} is wanted.")
        return node

    def section(self, key: str, wanted: str = "a mapping") -> "Section":
        """Return the mapping under a key."""
        node = self._node(key)
        if not isinstance(node, Entries):
            given = f"{node} ({node.sort})" if isinstance(node, Scalar) else str(node)
            self.refuse(key, f"{given} is given; {wanted} is wanted.")
        return Section(self.where, self.full_key(key), node)

    def text(self, key: str, choices: tuple[str, ...] = ()) -> str:
        """Return printable text, one of `choices` if there are any."""
        return self._checked_text(key, self._scalar(key, "text"), choices)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(self._checked_text(key, word, ()) for word in self._words(key, "[a, b]"))

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """Return a list of whole numbers from `low` to `high`."""
        found = []
        for word in self._words(key, "[1, 8]"):
            value = word.number
            if value is None or not low <= value <= high or value != int(value):
                self.refuse(key, f"{word} is given; whole numbers from {low} to {high} are wanted.")
            found.append(int(value))
        return tuple(found)

    def _words(self, key: str, example: str) -> list[Scalar]:
        node = self._node(key)
        if not isinstance(node, Items):
            self.refuse(key, f"{node} is given; a list such as {example} is wanted.")
        return [self._list_word(key, item) for item in node.values]

    def _list_word(self, key: str, item: Node) -> Scalar:
        if not isinstance(item, Scalar):
            self.refuse(key, f"{item} is given inside the list; text is wanted.")
        return item

    def _checked_text(self, key: str, scalar: Scalar, choices: tuple[str, ...]) -> str:
        if scalar.sort != "text":
            self.refuse(
                key, f'{scalar} is {scalar.sort}; text is wanted, so put it in quotes: "{_shown(scalar.text)}".'
            )
        text = scalar.text
        if not text.strip() or not text.isprintable() or len(text) > MAX_TEXT_LENGTH:
            self.refuse(key, f"{scalar} is not printable text on one line of 1 to {MAX_TEXT_LENGTH} characters.")
        if choices and text not in choices:
            hint = did_you_mean(text[:80], choices)
            self.refuse(key, f"{scalar} is given; allowed are {', '.join(choices)}.{hint}")
        return text

    def number(self, key: str, low: float, high: float) -> float:
        """Return a finite number from `low` to `high`."""
        scalar = self._scalar(key, "a number")
        value = scalar.number
        allowed = f"a number from {low:g} to {high:g}"
        if value is None:
            self.refuse(key, f"{scalar} is {_why_no_number(scalar)}; {allowed} is wanted.")
        if not math.isfinite(value) or not low <= value <= high:
            self.refuse(key, f"{scalar} is out of range; {allowed} is allowed.")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`."""
        value = self.number(key, low, high)
        if value != int(value):
            self.refuse(
                key, f"{self._scalar(key, 'a number')} is not whole; a whole number from {low} to {high} is wanted."
            )
        return int(value)

    def boolean(self, key: str) -> bool:
        """Return true or false; yes, no, on and off are refused."""
        scalar = self._scalar(key, "true or false")
        if scalar.quoted or scalar.text not in _BOOLEANS:
            self.refuse(key, f"{scalar} is {scalar.sort}; write true or false.")
        return _BOOLEANS[scalar.text]


def _why_no_number(scalar: Scalar) -> str:
    if len(scalar.text) > MAX_NUMBER_LENGTH:
        return "too long for a number"
    if scalar.quoted and Scalar(scalar.text, False, scalar.line).number is not None:
        return "text because of its quotes"
    if not scalar.quoted and _LEADING_ZERO.match(scalar.text):
        return "ambiguous because of its leading zero"
    if scalar.sort == "text":
        return "text, not a number (no units, colons, underscores or dates here)"
    return scalar.sort
