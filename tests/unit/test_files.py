import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(json_values.filter(lambda value: "\\ud" not in json.dumps(value)))
def test_json_round_trip(value):
    assert parse_json(to_json(value), "here") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "beyond the range"),
        ('{"a": 1, "a": 2}', '"a" appears twice'),
        ("[" * 70 + "]" * 70, "deeper than 64"),
        ("[" * 100_000, "deeper than 64"),
        ("[" + "9" * 5000 + "]", "too long"),
        ('["\\ud800"]', "surrogate"),
        ("[1,", "here:1: not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_hostile_json_is_refused_with_a_sentence(text, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        parse_json(text, "here")


def test_brackets_in_strings_are_not_depth():
    assert parse_json('{"a": "' + "[" * 200 + '\\"{{"}', "here")["a"].startswith("[[")


def test_read_text_accepts_a_byte_order_mark_and_refuses_what_is_no_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfhello")
    assert read_text(file, 100, "note") == "hello"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="must be UTF-8"):
        read_text(file, 100, "note")
    file.write_bytes(b"x" * 101)
    with pytest.raises(InputError, match="too large for a note"):
        read_text(file, 100, "note")
    with pytest.raises(InputError, match="regular file"):
        read_text(tmp_path, 100, "note")
    with pytest.raises(InputError, match="cannot read"):
        read_text(tmp_path / "absent", 100, "note")


def test_a_pipe_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        read_text(tmp_path / "pipe", 100, "note")


def test_writing_replaces_whole_files_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "plan.json"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "plan.json"
    write_atomic(target, "old")

    def fail(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_missing_folder_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot write here"):
        write_atomic(tmp_path / "absent" / "plan.json", "x")
