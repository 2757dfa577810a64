"""Typed access to YAML: numbers as in YAML 1.2, and a sentence with file, line and key for everything else."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.yaml_file import MAX_BYTES, Section, parse_yaml, read_yaml


def top(text: str) -> Section:
    return parse_yaml(text, "f.yaml")


# A41; PyYAML by itself reads the first three as text
@pytest.mark.parametrize(
    ("spelling", "value"),
    [
        ("989e12", 989e12),
        ("9.89e14", 9.89e14),
        ("1e3", 1000.0),
        ("1E3", 1000.0),
        ("1.5e-3", 0.0015),
        ("1e+3", 1000.0),
        ("3350", 3350.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7.0),
        ("-2.5", -2.5),
        ("0", 0.0),
    ],
)
def test_number_spellings(spelling: str, value: float) -> None:
    assert top(f"key: {spelling}").number("key", -10, 1e20) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_survives_its_text(value: float) -> None:
    assert top(f"key: {value!r}").number("key", -math.inf, math.inf) == value


@pytest.mark.parametrize(
    ("spelling", "reason"),
    [
        ("1:30", "text, not a number"),
        ("017", "leading zero"),
        ("off", "text, not a number"),
        ("2024-01-01", "text, not a number"),
        ("0x1F", "leading zero|text, not a number"),
        ("0o17", "text, not a number"),
        ("1_000", "text, not a number"),
        ("3350 GB/s", "text, not a number"),
        ('"3350"', "because of its quotes"),
        ("true", "a truth value"),
        ("null", "nothing"),
        ("", "nothing"),
        ("9" * 5000, "too long"),
        (".inf", "out of range"),
        (".nan", "out of range"),
        ("1e999", "out of range"),
        ("[1]", "a list is given"),
        ("{a: 1}", "a mapping is given"),
    ],
)
def test_no_number(spelling: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^f\.yaml:2: key: .*({reason}).*number") as caught:
        top(f"# comment\nkey: {spelling}").number("key", 0, 1e300)
    assert len(str(caught.value)) < 300


def test_integers_are_whole() -> None:
    assert top("key: 1e3").integer("key", 1, 2000) == 1000
    with pytest.raises(InputError, match=r"f\.yaml:1: key: 1\.5 is not whole"):
        top("key: 1.5").integer("key", 1, 2)


@pytest.mark.parametrize("word", ["off", "no", "yes", "on", "y", "1", '"true"', "", "[true]"])
def test_no_truth_value(word: str) -> None:
    with pytest.raises(InputError, match=r"f\.yaml:1: key: .*true or false"):
        top(f"key: {word}").boolean("key")


def test_truth_values() -> None:
    section = top("a: true\nb: False")
    assert section.boolean("a") is True
    assert section.boolean("b") is False


@pytest.mark.parametrize(
    "word", ["4090", "1e3", "true", "null", '""', '" "', r'"\e[31m"', r'"a\nb"', "x" * 2000, "[a]", r'"\uD800"']
)
def test_no_text(word: str) -> None:
    with pytest.raises(InputError, match=r"^f\.yaml:1: key: .*text") as caught:
        top(f"key: {word}").text("key")
    assert str(caught.value).isprintable()


def test_text_choices_and_lists() -> None:
    section = top('key: red\nlist: [a, "4090", off]\nbad: [a, [b]]\nscalar: a')
    assert section.text("key", ("red", "green")) == "red"
    assert section.texts("list") == ("a", "4090", "off")
    with pytest.raises(InputError, match=r'allowed are green, reed\. Did you mean "reed"\?'):
        section.text("key", ("green", "reed"))
    with pytest.raises(InputError, match=r"f\.yaml:3: bad: a list is given inside the list"):
        section.texts("bad")
    with pytest.raises(InputError, match=r"f\.yaml:4: scalar: .*a list such as"):
        section.texts("scalar")


def test_sections_nest_and_report_dotted_keys() -> None:
    section = top("outer:\n  inner: {value: 3, word: x}\nlist: [1]")
    inner = section.section("outer").section("inner")
    assert inner.path == "outer.inner"
    assert inner.keys() == ("value", "word")
    assert "value" in inner
    with pytest.raises(InputError, match=r"f\.yaml:2: outer\.inner\.word: x is text"):
        inner.number("word", 0, 1)
    with pytest.raises(InputError, match=r"f\.yaml:3: list: a list is given; a mapping is wanted"):
        section.section("list")
    with pytest.raises(InputError, match=r"f\.yaml:2: outer\.inner\.gone: missing"):
        inner.text("gone")


def test_keys_are_known_and_complete() -> None:
    section = top("capcity_gib: 1\n")
    with pytest.raises(InputError, match=r'f\.yaml:1: capcity_gib: unknown key\. Did you mean "capacity_gib"\?'):
        section.check_keys(("capacity_gib",))
    with pytest.raises(InputError, match=r"f\.yaml:1: the file: missing a, b\."):
        section.check_keys(("a", "b"), ("capcity_gib",))
    with pytest.raises(InputError, match=r"zzz: unknown key; allowed are capacity_gib\."):
        top("zzz: 1").check_keys(("capacity_gib",))
    with pytest.raises(InputError, match=r"needs its unit in the key; write bandwidth_gb_per_s\."):
        top("bandwidth: 3350").check_keys((), ("bandwidth_gb_per_s",))


def test_byte_order_mark_comments_and_document_start_are_fine() -> None:
    assert top("---\n# note\nkey: 1 # one\n...\n").number("key", 0, 2) == 1


def _outcome(text: str) -> str:
    try:
        parse_yaml(text, "f.yaml")
    except InputError as error:
        return str(error)
    return "f.yaml is fine"


@given(st.text(max_size=200))
def test_any_text_is_a_section_or_an_input_error(text: str) -> None:
    assert _outcome(text).startswith("f.yaml")


@given(st.text(alphabet="abc:{}[]-,\n \t'\"&*!%|>#?<~0123.\\xuU", max_size=120))
def test_yaml_like_noise_is_a_section_or_an_input_error(text: str) -> None:
    assert _outcome(text).startswith("f.yaml")


def test_a_file_is_read_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "sheet.yaml"
    path.write_text("key: 1\n")
    assert read_yaml(path, "kernel sheet").number("key", 0, 1) == 1
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(InputError, match="too large for a kernel sheet"):
        read_yaml(path, "kernel sheet")
