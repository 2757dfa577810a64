"""Hostile safetensors files: each is refused by one sentence, with the reference library's verdict (A36)."""

import os
import re
import struct
import tracemalloc
from pathlib import Path

import pytest
import safetensors as reference
from crafted_checkpoints import entry, no_hang, safetensors

from codesign.errors import InputError
from codesign.model.safetensors_file import read_safetensors

PEAK_BYTES_MAX = 2**24
ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]%s}}'


def raw(header: str, data_bytes: int = 4, length: int | None = None) -> bytes:
    return safetensors(header, bytes(data_bytes), length)


def one(*, data_bytes: int = 4, **changes: object) -> bytes:
    """Return a file with one tensor of four bytes, some of its keys changed."""
    return safetensors({"a": entry("F32", [1], 0, 4) | changes}, bytes(data_bytes))


def two(second: dict[str, object], data_bytes: int = 8) -> bytes:
    return safetensors({"a": entry("F32", [1], 0, 4), "b": second}, bytes(data_bytes))


HOSTILE: dict[str, tuple[bytes, str]] = {
    # the length of the header
    "empty file": (b"", r"byte 0: the length of the header needs 8 bytes, but the file ends after 0"),
    "seven bytes": (b"\2\0\0\0\0\0\0", r"byte 0: the length of the header needs 8 bytes"),
    "header of 2^63 bytes": (raw("{}", 0, 2**63), r"byte 0: a header of 9223372036854775808 bytes is announced"),
    "header of 100,000,001 bytes": (raw("{}", 0, 100_000_001), r"byte 0: a header of 100000001 bytes is announced"),
    "header beyond the file": (raw("{}", 0, 3), r"byte 8: the header needs 3 bytes, but the file ends after 2"),
    "no header": (raw("", 0), r'the header begins with ""'),
    # the text of the header
    "not UTF-8": (safetensors(b'{"a\xff":1}'), r"byte 11: the header is not UTF-8"),
    "byte order mark": (raw("\ufeff" + ONE % ""), r"the header begins with"),
    "list at the top": (raw("[]", 0), r'byte 8: the header begins with "\["'),
    "cut JSON": (raw((ONE % "")[:-1]), r"not valid JSON at byte 61"),
    "text after the header": (raw(ONE % "" + "\0"), r"not valid JSON at byte 62: Extra data"),
    "NaN": (raw(ONE % ',"x":NaN'), r"NaN is not JSON"),
    "1e999": (raw(ONE % ',"x":1e999'), r"1e999.* is beyond the range of numbers"),
    "5,000 digits": (raw(ONE % f',"x":{"9" * 5000}'), r"is beyond the range of numbers"),
    "half a surrogate pair": (raw((ONE % "").replace('"a"', '"\\ud800"')), r"half of a surrogate pair"),
    "128 levels": (raw(ONE % f',"x":{"[" * 126}{"]" * 126}'), r"nested deeper than 127 levels"),
    "100,000 levels": (raw('{"a":' * 100_000), r"nested deeper than 127 levels"),
    # what it says of tensors
    "tensor as number": (raw('{"a":1}', 0), r'"a" must be an object with dtype, shape and data_offsets'),
    "metadata with a number": (raw('{"__metadata__":{"a":1}}', 0), r"__metadata__ must be an object of texts"),
    "unknown dtype": (one(dtype="F128"), r'"a": the dtype "F128" is unknown'),
    "no dtype": (raw('{"a":{"shape":[1],"data_offsets":[0,4]}}'), r'"a": the dtype null is unknown'),
    "negative dimension": (one(shape=[-1]), r'"a": the shape \[-1\] must be a list of whole numbers'),
    "dimension -0": (raw((ONE % "").replace("[1]", "[-0]")), r"the shape \[-0.0\] must be"),
    "dimension 1.0": (one(shape=[1.0]), r"the shape \[1.0\] must be"),
    "dimension true": (one(shape=[True]), r"the shape \[true\] must be"),
    "dimension 2^64": (one(shape=[2**64]), r"the shape \[18446744073709551616\] must be"),
    "three offsets": (one(data_offsets=[0, 4, 4]), r"data_offsets \[0, 4, 4\] must be two whole numbers"),
    # sizes
    "product that overflows": (one(shape=[2**32, 2**32]), r'byte 90: "a" has more than 2\^64 values'),
    "product that overflows before a zero": (
        safetensors({"a": entry("F32", [2**63, 2, 0], 0, 0)}),
        r'"a" has more than 2\^64 values',
    ),
    "bits that overflow": (one(shape=[2**62]), r'"a" has 4611686018427387904 values of F32, which do not take'),
    "size not that of the shape": (one(shape=[2]), r'"a" has 2 values of F32, which do not take the 4 bytes given'),
    "half a byte": (one(dtype="F4", shape=[7]), r'"a" has 7 values of F4'),
    # places
    "overlap": (two(entry("F32", [1], 2, 6), 6), r'"b" has data_offsets \[2, 6\]; .* at 4'),
    "hole": (two(entry("F32", [1], 8, 12), 12), r'"b" has data_offsets \[8, 12\]; .* at 4'),
    "same place": (two(entry("F32", [1], 0, 4), 4), r'"b" has data_offsets \[0, 4\]; .* at 4'),
    "end before start": (one(data_offsets=[4, 0]), r'"a" has data_offsets \[4, 0\]'),
    "end near 2^64": (one(data_offsets=[0, 2**64 - 1]), r'"a" has 1 values of F32, which do not take'),
    "data a byte short": (one(data_bytes=3), r"the tensors take 4 bytes from here, the file has 3"),
    "a byte too many": (one(data_bytes=5), r"the tensors take 4 bytes from here, the file has 5"),
    "bytes without tensors": (raw("{}", 1), r"the tensors take 0 bytes from here, the file has 1"),
}

# Against the text of the format, and let through by the library.
STRICTER: dict[str, tuple[bytes, str]] = {
    "tensor twice": (raw((ONE % "")[:-1] + "," + (ONE % "")[1:]), r'byte 8: "a" is given twice'),
    "metadata key twice": (raw('{"__metadata__":{"a":"b","a":"c"}}', 0), r'"a" is given twice'),
    "leading space": (raw(" " + ONE % ""), r'byte 8: the header begins with " "'),
    "tensor as list": (raw('{"a":["F32",[1],[0,4]]}'), r'"a" must be an object'),
    "type as object": (raw((ONE % "").replace('"F32"', '{"F32":null}')), r'the dtype \{"F32": null\} is unknown'),
}


def refusal(path: Path) -> str:
    with no_hang(), pytest.raises(InputError) as caught:
        read_safetensors(path)
    return str(caught.value)


def reference_accepts(data: bytes) -> bool:
    try:
        reference.deserialize(data)
    except reference.SafetensorError:
        return False
    return True


def test_there_are_at_least_thirty_five_cases():
    assert len(HOSTILE) >= 35


@pytest.mark.parametrize("name", [*HOSTILE, *STRICTER])
def test_hostile_file_is_refused(tmp_path: Path, name: str):
    data, sentence = (HOSTILE | STRICTER)[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    message = refusal(path)
    assert re.match(rf"{re.escape(str(path))}: byte \d+: ", message), message
    assert re.search(sentence, message), message
    assert reference_accepts(data) == (name in STRICTER)


def test_odd_but_valid_files_are_read(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for data in (
        raw(ONE % f',"x":{"[" * 125}{"]" * 125}'),
        raw(ONE % ',"x":-0'),
        raw(ONE % "" + " \n\t"),
        raw('{"__metadata__":null}', 0),
        safetensors({"a\x1b[2J/../b": entry("F32", [1], 0, 4)}, bytes(4)),
        safetensors({"a": entry("F32", [0, 2**63], 0, 0)}),
        raw("{}", 0),
    ):
        path.write_bytes(data)
        assert reference_accepts(data)
        assert read_safetensors(path).file_bytes == len(data)


def test_folder_pipe_device_and_absent_file_are_refused_without_being_opened(tmp_path: Path):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path(os.devnull)):
        assert "a safetensors file must be a regular file" in refusal(path)
    assert "cannot read this safetensors file: No such file" in refusal(tmp_path / "absent")
    assert "cannot read this safetensors file" in refusal(tmp_path / "a\0b")


def test_large_hostile_headers_take_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.safetensors"
    quotes = '{"' + '\\"' * 1_000_000  # an unended text of escaped quotes: quadratic for a naive scan
    path.write_bytes(safetensors(quotes))
    assert "not valid JSON" in refusal(path)
    monkeypatch.setattr("codesign.model.safetensors_file.TENSORS_MAX", 10_000)
    for limit, part in (("COMMAS_MAX", '"a":['), ("COLONS_MAX", '"a":0,'), ("TENSORS_MAX", "[[],")):
        monkeypatch.setattr(f"codesign.model.safetensors_file.{limit}", 10_000)
        path.write_bytes(safetensors(f"{{{part}" + ("0," if limit == "COMMAS_MAX" else part) * 20_300))
        assert "more values than" in refusal(path)


def test_budgets_hold_at_the_limit_and_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(two(entry("F32", [1], 4, 8)))
    (header_bytes,) = struct.unpack("<Q", path.read_bytes()[:8])
    for name, limit in (
        ("HEADER_BYTES_MAX", header_bytes),
        ("TENSORS_MAX", 2),
        ("COMMAS_MAX", 7),
        ("COLONS_MAX", 8),
        ("DEPTH_MAX", 3),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"codesign.model.safetensors_file.{name}", limit)
            assert len(read_safetensors(path).tensors) == 2
            patch.setattr(f"codesign.model.safetensors_file.{name}", limit - 1)
            assert "byte" in refusal(path)


def test_hostile_files_take_little_memory(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    tracemalloc.start()
    try:
        for data, _ in HOSTILE.values():
            path.write_bytes(data)
            with pytest.raises(InputError):
                read_safetensors(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES_MAX
