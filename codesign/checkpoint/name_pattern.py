"""Match names of modules with the patterns of quantization configs, in time linear in the name.

The files are untrusted, and Python's own engine backtracks: one hostile pattern stops it for hours. Here a pattern
becomes a set of states, as in Thompson's construction, and seen steps are kept. Patterns that need more than literals,
classes, groups, alternatives, repeats and anchors (look-ahead, back references) are not understood.
"""

import re
from collections.abc import Callable

from codesign.errors import InputError

PATTERN_CHARACTERS_MAX = 2000
DEPTH_MAX = 20
STATES_MAX = 2000
SETS_KEPT_MAX = 5000
WORK_MAX = 5_000_000  # states visited by one pattern, all names together
REPEATS_MAX = 100
NAME_CHARACTERS_MAX = 1024

_CLASSES = {"d": r"[0-9]", "w": r"[A-Za-z0-9_]", "s": r"\s", "D": r"[^0-9]", "W": r"[^A-Za-z0-9_]", "S": r"\S"}
_BRACKET = re.compile(r"\[\^?(?:\\.|[^\]\\])(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEAT = re.compile(r"([*+?])|\{([0-9]{1,4})(,)?([0-9]{1,4})?\}")
_NAME_START, _NAME_END, _MATCHED = -1, -2, -3


class _UnknownPatternError(Exception):
    """The pattern uses what is not understood here."""


def pattern_matcher(pattern: str) -> Callable[[str], bool] | None:
    """Return whether a name begins with a match, as `re.match` does; None if the pattern is not understood."""
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        return None
    try:
        parser = _Parser(pattern)
        start = parser.alternatives(0)
        if parser.at != len(pattern):
            return None
        machine = _Machine()
        machine.start = start(machine, machine.add(_MATCHED, ()))
    except _UnknownPatternError:
        return None
    return machine.matches


Piece = Callable[["_Machine", int], int]  # adds its states in front of a following state, and returns the first


class _Machine:
    """States with what they read and where they lead; a state without a reader leads on at once.

    Sets of states that were reached get numbers, and steps between them are looked up instead of computed again.
    """

    def __init__(self) -> None:
        self.readers: list[re.Pattern[str] | int | None] = []
        self.following: list[tuple[int, ...]] = []
        self.start = 0
        self._work = 0
        self._forget()

    def add(self, reader: re.Pattern[str] | int | None, following: tuple[int, ...]) -> int:
        """Return a new state."""
        if len(self.readers) >= STATES_MAX:
            raise _UnknownPatternError
        self.readers.append(reader)
        self.following.append(following)
        return len(self.readers) - 1

    def matches(self, name: str) -> bool:
        """Return whether a beginning of the name matches."""
        if not name:
            return self._matched(self._reached({self.start}, at_start=True, at_end=True))
        name = name[:NAME_CHARACTERS_MAX]
        if len(self._sets) > SETS_KEPT_MAX:
            self._forget()
        at = self._number(self._reached({self.start}, at_start=True, at_end=False)) if not self._sets else 0
        for character in name[:-1]:
            if self._done[at] is not None:
                return self._done[at] is True
            following = self._steps[at].get(character)
            if following is None:
                following = self._number(self._step(self._sets[at], character, at_end=False))
                self._steps[at][character] = following
            at = following
        if self._done[at] is None and name[-1] not in self._ends[at]:
            self._ends[at][name[-1]] = self._matched(self._step(self._sets[at], name[-1], at_end=True))
        return self._ends[at][name[-1]] if self._done[at] is None else self._done[at] is True

    def _forget(self) -> None:
        self._numbers: dict[frozenset[int], int] = {}
        self._sets: list[frozenset[int]] = []
        self._steps: list[dict[str, int]] = []
        self._ends: list[dict[str, bool]] = []
        self._done: list[bool | None] = []  # whether all names match from here on, or none does

    def _number(self, states: frozenset[int]) -> int:
        if states not in self._numbers:
            self._numbers[states] = len(self._sets)
            self._sets.append(states)
            self._steps.append({})
            self._ends.append({})
            self._done.append(True if self._matched(states) else None if states else False)
        return self._numbers[states]

    def _matched(self, states: frozenset[int]) -> bool:
        return any(self.readers[state] == _MATCHED for state in states)

    def _step(self, states: frozenset[int], character: str, *, at_end: bool) -> frozenset[int]:
        after: set[int] = set()
        for state in states:
            reader = self.readers[state]
            if isinstance(reader, re.Pattern) and reader.match(character):
                after.update(self.following[state])
        return self._reached(after, at_start=False, at_end=at_end)

    def _reached(self, states: set[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        """Return the states that are reached without reading."""
        passable = {None, *([_NAME_START] if at_start else []), *([_NAME_END] if at_end else [])}
        seen, waiting = set(states), list(states)
        while waiting:
            state = waiting.pop()
            reader = self.readers[state]
            if not isinstance(reader, re.Pattern) and reader in passable:
                new = set(self.following[state]) - seen
                seen |= new
                waiting += new
        self._work += len(seen)
        if self._work > WORK_MAX:
            raise InputError("A pattern of the quantization config takes too long to match; it is no list of layers.")
        return frozenset(seen)


class _Parser:
    """Turns the text of a pattern into pieces; nesting is bounded."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def alternatives(self, depth: int) -> Piece:
        """Return one of several sequences."""
        if depth > DEPTH_MAX:
            raise _UnknownPatternError
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else _either(options)

    def _sequence(self, depth: int) -> Piece:
        pieces: list[Piece] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            piece = self._atom(depth)
            repeat = _REPEAT.match(self.text, self.at)
            if repeat:
                self.at = repeat.end()
                piece = _repeated(piece, *_bounds(repeat))
                if self.text[self.at : self.at + 1] in ("?", "+") and self.text[self.at : self.at + 1]:
                    raise _UnknownPatternError  # lazy and possessive repeats
            pieces.append(piece)
        return _all(pieces)

    def _atom(self, depth: int) -> Piece:
        if self._take("("):
            if self._take("?") and not self._take(":"):
                raise _UnknownPatternError
            inner = self.alternatives(depth + 1)
            if not self._take(")"):
                raise _UnknownPatternError
            return inner
        character = self.text[self.at]
        if character == "[":
            return self._bracket()
        self.at += 1
        if character in "*+?{}":
            raise _UnknownPatternError
        if character == "\\":
            return self._escape()
        special: dict[str, Piece] = {"^": _state(_NAME_START), "$": _state(_NAME_END), ".": _reads(r"[^\n]")}
        return special.get(character) or _reads(re.escape(character))

    def _bracket(self) -> Piece:
        match = _BRACKET.match(self.text, self.at)
        if match is None:
            raise _UnknownPatternError
        self.at = match.end()
        return _reads(match[0])

    def _escape(self) -> Piece:
        if self.at >= len(self.text):
            raise _UnknownPatternError
        character = self.text[self.at]
        self.at += 1
        if character in _CLASSES:
            return _reads(_CLASSES[character])
        if character.isalnum():
            raise _UnknownPatternError
        return _reads(re.escape(character))

    def _take(self, character: str) -> bool:
        found = self.text.startswith(character, self.at)
        self.at += found
        return found


def _bounds(repeat: re.Match[str]) -> tuple[int, int | None]:
    if repeat[1]:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[repeat[1]]
    low = int(repeat[2])
    high = (int(repeat[4]) if repeat[4] else None) if repeat[3] else low
    if max(low, high or 0) > REPEATS_MAX:
        raise _UnknownPatternError
    return low, high


def _state(reader: re.Pattern[str] | int) -> Piece:
    return lambda machine, following: machine.add(reader, (following,))


def _reads(one_character: str) -> Piece:
    try:
        return _state(re.compile(one_character))
    except re.error as error:
        raise _UnknownPatternError from error


def _all(pieces: list[Piece]) -> Piece:
    def build(machine: _Machine, following: int) -> int:
        for piece in reversed(pieces):
            following = piece(machine, following)
        return following

    return build


def _either(options: list[Piece]) -> Piece:
    return lambda machine, following: machine.add(None, tuple(option(machine, following) for option in options))


def _repeated(piece: Piece, low: int, high: int | None) -> Piece:
    def build(machine: _Machine, following: int) -> int:
        if high is None:
            loop = machine.add(None, ())
            machine.following[loop] = (piece(machine, loop), following)
            following = loop
        else:
            for _ in range(high - low):
                following = machine.add(None, (piece(machine, following), following))
        for _ in range(low):
            following = piece(machine, following)
        return following

    return build
