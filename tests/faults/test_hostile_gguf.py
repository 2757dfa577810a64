"""Hostile GGUF files: each, whole or cut anywhere, is refused by one sentence with file and byte (A33)."""

import re
import struct
import tracemalloc
from pathlib import Path

import pytest
from crafted_checkpoints import (
    ARRAY,
    BOOL,
    F16,
    F32,
    FLOAT32,
    Q4_0,
    Q4_K,
    TEXT,
    UINT8,
    UINT32,
    UINT64,
    array,
    gguf,
    good_gguf,
    key,
    no_hang,
    tensor,
    text,
    uint32,
)

from codesign.errors import InputError
from codesign.model.gguf_file import read_gguf

CUTS = 20
PEAK_BYTES_MAX = 2**24


def one(row: bytes, data_bytes: int = 4096) -> bytes:
    """Return a file with one tensor."""
    return gguf([uint32("a", 1)], [row], bytes(data_bytes))


def two(second_offset: int, first: int = F32, data_bytes: int = 4096) -> bytes:
    """Return a file with two tensors; the first takes 128 bytes if its type is F32."""
    rows = [tensor("a", (32,), first, 0), tensor("b", (32,), F32, second_offset)]
    return gguf([], rows, bytes(data_bytes))


def aligned(payload: bytes, value_type: int = UINT32) -> bytes:
    return gguf([key("general.alignment", value_type, payload)], [tensor("a", (32,))], bytes(4096))


BOMB = gguf([array("a", UINT8, 2**40)])

HOSTILE: dict[str, tuple[bytes, str]] = {
    # 1 the mark and the version
    "other mark": (gguf(magic=b"GGML"), r"byte 0: not a GGUF file"),
    "four bytes": (b"GGUF", r"byte 4: the version needs 4 bytes, but the file ends after 0"),
    "version 0": (gguf(version=0), r"byte 4: GGUF version 0 is given"),
    "version 1": (gguf(version=1), r"byte 4: GGUF version 1 is given"),
    "version 4": (gguf(version=4), r"byte 4: GGUF version 4 is given"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"byte 4: the file is big-endian"),
    # 2 counts
    "-1 tensors": (gguf(tensor_count=2**64 - 1), r"byte 8: 18446744073709551615 tensors are announced"),
    "-1 keys": (gguf(key_count=2**64 - 1), r"byte 16: 18446744073709551615 keys are announced"),
    "a key too many": (gguf([uint32("a", 1)], key_count=2), r"byte 16: 2 keys are announced; at most 1"),
    "a tensor too many": (gguf([], [tensor("a", (32,))], tensor_count=2), r"2 tensors are announced; at most 1"),
    "tensors after many keys": (
        gguf([array("a", UINT8, 900, bytes(900))], tensor_count=30),
        r"30 tensors are announced; at most 0",
    ),
    "count that overflows": (gguf(tensor_count=2**61 + 1, data=bytes(64)), r"byte 8: 2305843009213693953 tensors"),
    # 3 lengths of texts
    "key beyond the file": (gguf([text("k", 500) + bytes(30)]), r"byte 32: a key needs 500 bytes"),
    "key of -1 bytes": (gguf([text("k", 2**64 - 1) + bytes(30)]), r"byte 24: a key of 18446744073709551615 bytes"),
    "key of 64 KiB": (gguf([uint32("k" * 65_536, 1)]), r"byte 24: a key of 65536 bytes; at most 65535"),
    "text of 1 GiB": (gguf([key("a", TEXT, text("b", 2**30))]), r'the text of "a" of 1073741824 bytes; at most 1677'),
    "text beyond the file": (gguf([key("a", TEXT, text("b", 2**23))]), r'the text of "a" needs 8388608 bytes'),
    "token beyond the file": (
        gguf([array("t", TEXT, 2, text("a") + text("b", 99))]),
        r'byte 66: a text in the list "t" needs 99 bytes',
    ),
    "token of 1 GiB": (gguf([array("t", TEXT, 1, text("b", 2**30))]), r'a text in the list "t" of 1073741824 bytes'),
    # 4 value types
    "unknown value type": (gguf([key("a", 13, bytes(8))]), r'byte 33: the key "a" has the unknown value type 13'),
    "list of lists": (gguf([array("a", ARRAY, 1, bytes(20))]), r'byte 37: the list "a" has the element type 9'),
    "unknown element type": (gguf([array("a", 99, 0)]), r'byte 37: the list "a" has the element type 99'),
    # 5 lists
    "49-byte bomb": (BOMB, r'byte 49: the list "a" of 1099511627776 values needs 1099511627776 bytes'),
    "list of -1 numbers": (gguf([array("a", UINT64, 2**64 - 1)]), r'the list "a" of 18446744073709551615 values needs'),
    "list whose size wraps": (gguf([array("a", UINT64, 2**61 + 1, bytes(8))]), r"needs 18446744073709551624 bytes"),
    "list of 2^40 texts": (gguf([array("a", TEXT, 2**40, bytes(64))]), r'the list "a" needs 8796093022208 bytes'),
    "truth value of 2": (gguf([key("a", BOOL, b"\2")]), r"byte 37: 2 is given; a truth value is 0 or 1"),
    # 6 keys
    "key twice": (gguf([uint32("a", 1), uint32("a", 1)]), r'byte 41: the key "a" appears twice'),
    "empty key": (gguf([uint32("", 1), uint32("long enough", 1)]), r'byte 24: the key "" is empty'),
    "key not UTF-8": (gguf([key(b"a\xff", UINT32, bytes(4))]), r"byte 33: a key is not UTF-8"),
    # 7 alignment
    "alignment 0": (aligned(struct.pack("<I", 0)), r"general.alignment is 0; a power of two"),
    "alignment 24": (aligned(struct.pack("<I", 24)), r"general.alignment is 24; a power of two"),
    "alignment 2^30": (aligned(struct.pack("<I", 2**30)), r"general.alignment is 1073741824; a power of two"),
    "alignment a fraction": (aligned(struct.pack("<f", 32.0), FLOAT32), r"general.alignment is no whole number"),
    # 8 and 9 dimensions
    "5 dimensions": (one(tensor("a", (1, 1, 1, 1, 1))), r'"a" has 5 dimensions; at most 4'),
    "2^31 dimensions": (one(tensor("a", (32,), dimension_count=2**31)), r'"a" has 2147483648 dimensions'),
    "negative dimension": (one(tensor("a", (-32,))), r'"a" has a dimension of -32'),
    "product that wraps": (
        one(tensor("a", (2**32, 2**32, 16))),
        r'"a" has a dimension of 4294967296: negative, or too',
    ),
    # 10 blocks
    "part of a block": (one(tensor("a", (33,), Q4_0)), r'"a" has rows of 33 values; the blocks of Q4_0 have 32'),
    "row shorter than a block": (one(tensor("a", (128, 2), Q4_K)), r'"a" has rows of 128 values'),
    # 11 offsets
    "offset misaligned": (two(132), r'"b" is given the data offset 132; 128 is expected'),
    "offsets overlap": (two(64), r'"b" is given the data offset 64; 128 is expected'),
    "offset near 2^64": (two(2**64 - 16), r'"b" is given the data offset 18446744073709551600'),
    "first offset not 0": (one(tensor("a", (32,), F32, 32)), r'"a" is given the data offset 32; 0 is expected'),
    "unknown type ends beyond the file": (two(2**40, first=200), r'"a" ends beyond the file'),
    # 12 names
    "name of 1025 bytes": (one(tensor("n" * 1025, (32,))), r"the name of a tensor of 1025 bytes; at most 1024"),
    "name twice": (gguf([], [tensor("a", (32,)), tensor("a", (32,), F32, 128)], bytes(256)), r'"a" appears twice'),
    "name not UTF-8": (one(tensor(b"\xc3(", (32,))), r"the name of a tensor is not UTF-8"),
    "name with an escape": (one(tensor("a\x1b[2J", (32,))), r'"a\\u001b\[2J" is empty, not printable or a path'),
    "name as path": (one(tensor("../../etc/passwd", (32,))), r'"../../etc/passwd" is empty, not printable or a path'),
    # 13 and 14 data
    "data a byte short": (one(tensor("a", (32,), F16), 63), r'"a" takes 64 bytes of data; the file has 63 there'),
    "no data": (gguf([], [tensor("a", (32,))])[:-1], r"the data of the tensors begin at byte 64, beyond the end"),
    "sizes that overflow": (one(tensor("a", (2**62, 1), F32)), r'"a" takes 18446744073709551616 bytes'),
}


def refusal(path: Path) -> str:
    with no_hang(), pytest.raises(InputError) as caught:
        read_gguf(path)
    return str(caught.value)


def test_there_are_at_least_forty_five_cases():
    assert len(HOSTILE) >= 45
    assert len(BOMB) == 49


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_whole_and_cut(tmp_path: Path, name: str):
    data, sentence = HOSTILE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    message = refusal(path)
    assert message.startswith(f"{path}: byte ")
    assert re.search(sentence, message), message
    for cut in range(CUTS):
        path.write_bytes(data[: len(data) * cut // CUTS])
        assert re.match(rf"{re.escape(str(path))}: byte \d+: ", refusal(path))


def test_hostile_files_take_little_memory(tmp_path: Path):
    path = tmp_path / "x.gguf"
    tracemalloc.start()
    try:
        for data, _ in HOSTILE.values():
            path.write_bytes(data)
            with pytest.raises(InputError):
                read_gguf(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES_MAX


@pytest.mark.parametrize("version", [2, 3])
def test_good_file_cut_anywhere_is_refused(tmp_path: Path, version: int):
    data, path = good_gguf(version), tmp_path / "x.gguf"
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        assert re.match(rf"{re.escape(str(path))}: byte \d+: ", refusal(path))


def test_budgets_hold_at_the_limit_and_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.gguf"
    path.write_bytes(good_gguf())
    header_bytes = good_gguf().index(b"ffn_down.weight") + len(b"ffn_down.weight") + 4 + 16 + 4 + 8
    for name, limit in (("HEADER_BYTES_MAX", header_bytes), ("TENSORS_MAX", 3), ("NAME_BYTES_MAX", 22)):
        with monkeypatch.context() as patch:
            patch.setattr(f"codesign.model.gguf_file.{name}", limit)
            assert len(read_gguf(path).tensors) == 3
            patch.setattr(f"codesign.model.gguf_file.{name}", limit - 1)
            assert "byte" in refusal(path)
    for name, limit in (("KEYS_MAX", 8), ("KEY_BYTES_MAX", 29), ("TEXT_BYTES_MAX", 30), ("VALUES_KEPT_MAX", 7)):
        with monkeypatch.context() as patch:
            patch.setattr(f"codesign.model.gguf_metadata.{name}", limit)
            assert len(read_gguf(path).tensors) == 3
            patch.setattr(f"codesign.model.gguf_metadata.{name}", limit - 1)
            assert "byte" in refusal(path)
