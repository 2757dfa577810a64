import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from crafted_checkpoints import (
    F16,
    F32,
    FLOAT32,
    INT32,
    Q4_0,
    TEXT,
    UINT16,
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
from codesign.model.gguf_file import GgufFile, read_gguf
from codesign.model.gguf_metadata import UnreadArray
from codesign.model.stored_tensor import StoredTensor


def read(tmp_path: Path, data: bytes) -> GgufFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    return read_gguf(path)


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_have_their_type_rows_first_and_bytes(tmp_path: Path, version: int):
    file = read(tmp_path, good_gguf(version))
    data_start = len(good_gguf(version)) - 908
    assert file.tensors == (
        StoredTensor("token_embd.weight", "Q4_K", (4, 256), 576, "x.gguf", data_start),
        StoredTensor("blk.0.attn_norm.weight", "F32", (32,), 128, "x.gguf", data_start + 576),
        StoredTensor("blk.0.ffn_down.weight", "Q8_0", (3, 64), 204, "x.gguf", data_start + 704),
    )
    assert file.file_bytes == len(good_gguf(version))


def test_metadata_keeps_values_and_short_lists_and_counts_the_rest(tmp_path: Path):
    values = read(tmp_path, good_gguf()).metadata.values
    assert values["general.architecture"] == "llama"
    assert values["llama.block_count"] == 1
    assert values["llama.rope.freq_base"] == 10000.0
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert values["llama.attention.head_count_kv"] == (8, -1, 8)
    assert values["tokenizer.ggml.tokens"] == UnreadArray("text", 4)
    assert values["general.parameter_count"] == 2**40


def test_metadata_names_key_found_and_wanted(tmp_path: Path):
    metadata = read(tmp_path, good_gguf()).metadata
    assert metadata.value("llama.block_count", int) == 1
    assert "llama.block_count" in metadata
    for name, wanted, sentence in (
        ("llama.context_length", int, '"llama.context_length" is missing; a whole number is wanted'),
        ("general.architecture", int, '"general.architecture" holds a text; a whole number is wanted'),
        ("llama.block_count", bool, '"llama.block_count" holds a whole number; true or false is wanted'),
        ("llama.attention.head_count_kv", int, "holds a list of 3 values; a whole number is wanted"),
        ("tokenizer.ggml.tokens", str, "holds a list; a text is wanted"),
    ):
        with pytest.raises(InputError, match=sentence):
            metadata.value(name, wanted)


def test_list_of_the_greatest_length_kept_and_one_longer(tmp_path: Path):
    payload = bytes(10_001)
    values = read(tmp_path, gguf([array("a", 0, 10_000, payload[1:]), array("b", 0, 10_001, payload)])).metadata.values
    assert values == {"a": (0,) * 10_000, "b": UnreadArray("uint8", 10_001)}


def test_scalar_and_empty_tensors_are_listed(tmp_path: Path):
    rows = [tensor("scalar", (), F32, 0), tensor("empty", (32, 0, 2), Q4_0, 32), tensor("last", (2,), F16, 32)]
    file = read(tmp_path, gguf([], rows, bytes(36)))
    assert [(row.shape, row.byte_count) for row in file.tensors] == [((), 4), ((2, 0, 32), 0), ((2,), 4)]


@pytest.mark.parametrize("number", [4, 31, 38, 42, 200, -1, 2**31 - 1])
def test_type_without_a_name_is_listed_by_number_with_the_bytes_up_to_the_next_tensor(tmp_path: Path, number: int):
    rows = [tensor("a", (100, 7), number, 0), tensor("b", (32,), F32, 320), tensor("c", (9,), number, 448)]
    file = read(tmp_path, gguf([], rows, bytes(500)))
    unknown = f"type {number}"
    assert [(row.dtype, row.byte_count) for row in file.tensors] == [(unknown, 320), ("F32", 128), (unknown, 52)]


def test_alignment_of_the_file_counts(tmp_path: Path):
    rows = [tensor("a", (2,), F32, 0), tensor("b", (2,), F32, 4096)]
    data = gguf([uint32("general.alignment", 4096)], rows, bytes(4096 + 8), alignment=4096)
    file = read(tmp_path, data)
    assert sum(row.byte_count for row in file.tensors) == 16
    with pytest.raises(InputError, match=r"byte \d+: \"b\" takes 8 bytes of data; the file has 7 there"):
        read(tmp_path, data[:-1])


def test_file_without_tensors_is_a_vocabulary(tmp_path: Path):
    assert read(tmp_path, gguf([uint32("a", 1)])).tensors == ()


def test_vocabulary_of_256_thousand_tokens_is_counted_quickly(tmp_path: Path):
    count = 262_144
    tokens = b"".join(text(f"token{number}") for number in range(count))
    scores = array("tokenizer.ggml.scores", FLOAT32, count, bytes(4 * count))
    with no_hang(cpu_s=0.5):
        file = read(tmp_path, gguf([array("tokens", TEXT, count, tokens), scores, uint32("last", 7)]))
    assert file.metadata.values["tokens"] == UnreadArray("text", count)
    assert file.metadata.values["last"] == 7


def test_texts_longer_than_a_window_are_skipped(tmp_path: Path):
    tokens = text("a" * 70_000) + text("b" * 200_000) + text("c")
    file = read(tmp_path, gguf([array("tokens", TEXT, 3, tokens), key("end", TEXT, text("d" * 100_000))]))
    assert file.metadata.value("end", str) == "d" * 100_000


def write_parts(folder: Path, names: Sequence[str], numbers: Sequence[int], count: int, total: int | None = None):
    """Write one part per name; part i announces number i and has the tensor ti."""
    for name, number in zip(names, numbers, strict=True):
        keys = [
            key("split.no", UINT16, struct.pack("<H", number)),
            key("split.count", UINT16, struct.pack("<H", count)),
        ]
        if total is not None:
            keys.append(key("split.tensors.count", INT32, struct.pack("<i", total)))
        (folder / name).write_bytes(gguf(keys, [tensor(f"t{number}", (32,))], bytes(128)))


PARTS = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.mark.parametrize("given", PARTS)
def test_any_part_of_a_split_file_stands_for_all(tmp_path: Path, given: str):
    write_parts(tmp_path, PARTS, (0, 1, 2), 3, total=3)
    file = read_gguf(tmp_path / given)
    assert [(row.name, row.file) for row in file.tensors] == [("t0", PARTS[0]), ("t1", PARTS[1]), ("t2", PARTS[2])]
    assert file.file_bytes == sum((tmp_path / name).stat().st_size for name in PARTS)
    assert file.metadata.value("split.no", int) == 0


def test_split_file_in_the_hub_cache(tmp_path: Path):
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_parts(blobs, ["x", "y", "z"], (0, 1, 2), 3, total=3)
    for part, blob in zip(PARTS, "xyz", strict=True):
        (snapshot / part).symlink_to(f"../../blobs/{blob}")
    assert [row.file for row in read_gguf(snapshot / PARTS[1]).tensors] == PARTS


def test_missing_part_is_named(tmp_path: Path):
    write_parts(tmp_path, PARTS, (0, 1, 2), 3)
    os.remove(tmp_path / PARTS[2])
    with pytest.raises(InputError, match=r'm-00001-of-00003\.gguf: the file "m-00003-of-00003\.gguf" is missing'):
        read_gguf(tmp_path / PARTS[0])


@pytest.mark.parametrize(
    ("numbers", "count", "total", "sentence"),
    [
        ((0, 2, 1), 3, 3, r"00002-of-00003\.gguf: the file says it is part 3 of 3; its name says part 2 of 3"),
        ((0, 1, 2), 4, 3, r"00001-of-00003\.gguf: the file says it is part 1 of 4; its name says part 1 of 3"),
        ((0, 1, 2), 3, 4, r"4 tensors are announced, the parts hold 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, numbers: tuple[int, ...], count: int, total: int, sentence):
    write_parts(tmp_path, PARTS, numbers, count, total)
    with pytest.raises(InputError, match=sentence):
        read_gguf(tmp_path / PARTS[0])


def test_tensor_in_two_parts_is_refused(tmp_path: Path):
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for number, name in enumerate(names):
        keys = [key("split.no", UINT16, struct.pack("<H", number)), key("split.count", UINT16, b"\2\0")]
        (tmp_path / name).write_bytes(gguf(keys, [tensor("t", (32,))], bytes(128)))
    with pytest.raises(InputError, match=r'00002\.gguf: the tensor "t" is also in "m-00001-of-00002\.gguf"'):
        read_gguf(tmp_path / names[0])


@pytest.mark.parametrize("name", ["m-00002-of-00001.gguf", "m-00000-of-00001.gguf", "m-00001-of-99999.gguf"])
def test_impossible_part_numbers_are_refused(tmp_path: Path, name: str):
    write_parts(tmp_path, [name], (0,), 1)
    with pytest.raises(InputError, match="parts count from 1, and at most 10000 are allowed"):
        read_gguf(tmp_path / name)


def test_part_with_another_name_is_refused_and_one_part_needs_none(tmp_path: Path):
    write_parts(tmp_path, ["m.gguf", "one.gguf"], (0, 0), 3)
    with pytest.raises(InputError, match=r"one of 3 parts; their names must end in -00001-of-00003\.gguf"):
        read_gguf(tmp_path / "m.gguf")
    write_parts(tmp_path, ["one.gguf"], (0,), 1)
    assert len(read_gguf(tmp_path / "one.gguf").tensors) == 1


def test_one_whole_file_may_be_called_part_one_of_one(tmp_path: Path):
    path = tmp_path / "m-00001-of-00001.gguf"
    path.write_bytes(good_gguf())
    assert len(read_gguf(path).tensors) == 3
