from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pytest

from codesign.codec import from_plain, to_plain
from codesign.errors import InputError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    length_m: float
    label: str | None


@dataclass(frozen=True)
class Outer:
    count: int
    on: bool
    colour: Colour
    parts: tuple[Inner, ...]
    amounts: Mapping[str, float]
    best: Inner | None


VALUE = Outer(3, True, Colour.BLUE, (Inner(1.5, "a"), Inner(2.0, None)), {"x": 1.0}, None)


def test_round_trip():
    assert from_plain(Outer, to_plain(VALUE), "file") == VALUE


def test_whole_numbers_are_accepted_where_a_number_is_wanted():
    assert from_plain(Inner, {"length_m": 2, "label": None}, "file").length_m == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 1.5}, "file.count: '1.5' is not a whole number"),
        ({"count": True}, "file.count: 'True' is not a whole number"),
        ({"on": 1}, "file.on: '1' is not true or false"),
        ({"colour": "bleu"}, 'Did you mean "blue"'),
        ({"parts": {}}, "file.parts: '{}' is not a list"),
        ({"parts": [{"length_m": "x", "label": None}]}, r"file.parts\[0\].length_m"),
        ({"amounts": [1]}, "is not an object"),
        ({"cuont": 1}, 'unknown key "cuont". Did you mean "count"'),
        ({"amounts": {"x": float("nan")}}, "not a finite number"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change, message):
    with pytest.raises(InputError, match=message):
        from_plain(Outer, to_plain(VALUE) | change, "file")


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match='"on" is missing'):
        from_plain(Outer, {key: value for key, value in to_plain(VALUE).items() if key != "on"}, "file")


@dataclass(frozen=True)
class Newer:
    count: int
    notes: tuple[str, ...] = ()


def test_a_key_with_a_default_may_be_missing_as_in_older_files():
    assert from_plain(Newer, {"count": 1}, "file") == Newer(1)
    assert from_plain(Newer, {"count": 1, "notes": ["a"]}, "file") == Newer(1, ("a",))
    with pytest.raises(InputError, match='"count" is missing'):
        from_plain(Newer, {"notes": []}, "file")
