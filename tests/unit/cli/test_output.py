import json
from dataclasses import dataclass

import pytest

from codesign.cli.output import plain, print_json, print_line, print_table, print_title
from codesign.table import Table


@dataclass(frozen=True)
class Point:
    x: float


def test_names_are_printed_literally(capsys):
    name = "q[int4] [/x] \x1b]0;title\x07\x1b[31mred\x9b \u202eevil"
    print_table(Table(("layer", "why"), [(name, "[bold]")]))
    print_title(name)
    print_line(name)
    out = capsys.readouterr().out
    assert "q[int4] [/x]" in out
    assert "[bold]" in out
    for character in "\x1b\x07\x9b\u202e":
        assert character not in out


def test_plain_keeps_lines_and_letters():
    assert plain("a\tb\nü") == "a\tb\nü"


def test_json_names_its_schema_and_refuses_nan(capsys):
    print_json({"point": Point(1.0)}, "test")
    assert json.loads(capsys.readouterr().out) == {"schema": "codesign.test", "schema_version": 1, "point": {"x": 1.0}}
    with pytest.raises(ValueError, match="JSON"):
        print_json({"point": Point(float("nan"))}, "test")
