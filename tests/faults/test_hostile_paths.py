"""Names in an index that lead elsewhere: refused, and the target is never opened (A38)."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crafted_checkpoints import entry, gguf, key, no_hang, opened_paths, recorded_events, safetensors

from codesign.errors import InputError
from codesign.model.gguf_file import read_gguf
from codesign.model.shards import read_shards
from codesign.model.weight_paths import sibling

SHARD = safetensors({"a": entry("F32", [1], 0, 4)}, bytes(4))

NAMES = {
    "parent": "../x.safetensors",
    "absolute": "/tmp/x.safetensors",
    "through a folder": "a/../../x.safetensors",
    "in a folder": "a/x.safetensors",
    "backslash": "..\\x.safetensors",
    "drive": "C:x.safetensors",
    "share": "//server/share/x.safetensors",
    "Windows share": "\\\\server\\share\\x.safetensors",
    "NUL": "x.safetensors\0.safetensors",
    "line break": "x\n.safetensors",
    "escape": "x\x1b[2J.safetensors",
    "right to left": "x\u202e.safetensors",
    "empty": "",
    "dot": ".",
    "two dots": "..",
    "256 bytes": "x" * 244 + ".safetensors",
    "home": "~/x.safetensors",
    "other suffix": "x.txt",
    "no suffix": "x",
}


def link_out(folder: Path) -> None:
    (folder.parent / "x.safetensors").write_bytes(SHARD)
    (folder / "x.safetensors").symlink_to("../x.safetensors")


def link_to_twin_folder(folder: Path) -> None:
    twin = folder.with_name(folder.name + "-other")
    twin.mkdir()
    (twin / "x.safetensors").write_bytes(SHARD)
    (folder / "x.safetensors").symlink_to(twin / "x.safetensors")


def link_to_blobs_that_are_no_cache(folder: Path) -> None:
    (folder.parent / "blobs").mkdir()
    (folder.parent / "blobs" / "x").write_bytes(SHARD)
    (folder / "x.safetensors").symlink_to("../blobs/x")


def link_to_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "x.safetensors").symlink_to("pipe")


def link_to_itself(folder: Path) -> None:
    (folder / "x.safetensors").symlink_to("x.safetensors")


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "link out": (link_out, "is a link that leaves the folder"),
    "link to a twin folder": (link_to_twin_folder, "is a link that leaves the folder"),
    "link to blobs of no cache": (link_to_blobs_that_are_no_cache, "is a link that leaves the folder"),
    "link to a device": (lambda folder: (folder / "x.safetensors").symlink_to(os.devnull), "leaves the folder"),
    "link to a pipe": (link_to_pipe, "must be a regular file"),
    "link to itself": (link_to_itself, "cannot look up"),
    "pipe": (lambda folder: os.mkfifo(folder / "x.safetensors"), "must be a regular file"),
    "folder": (lambda folder: (folder / "x.safetensors").mkdir(), "must be a regular file"),
    "absent": (lambda folder: None, 'the file "x.safetensors" is missing'),
}


def index_of(folder: Path, weight_map: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 4}, "weight_map": weight_map}))
    return path


def refusal_without_opening(index: Path) -> str:
    """Return the message; nothing but the index was opened."""
    with recorded_events() as events, no_hang(), pytest.raises(InputError) as caught:
        read_shards(index)
    assert opened_paths(events) == {str(index)}
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_name_that_is_not_plain_is_refused(tmp_path: Path, name: str):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "x.safetensors").write_bytes(SHARD)
    message = refusal_without_opening(index_of(folder, {"a": NAMES[name]}))
    assert message.startswith(f"{folder}/model.safetensors.index.json: ")
    assert "is no plain file name" in message or "is not named *.safetensors" in message
    assert message.isprintable()


@pytest.mark.parametrize("place", PLACES)
def test_place_that_is_no_file_of_the_folder_is_refused(tmp_path: Path, place: str):
    folder = tmp_path / "model"
    folder.mkdir()
    make, sentence = PLACES[place]
    make(folder)
    assert sentence in refusal_without_opening(index_of(folder, {"a": "x.safetensors"}))


def test_names_that_differ_in_case_are_refused(tmp_path: Path):
    for name in ("x.safetensors", "X.safetensors"):
        (tmp_path / name).write_bytes(SHARD)
    index = index_of(tmp_path, {"a": "x.safetensors", "b": "X.safetensors"})
    assert '"X.safetensors" and "x.safetensors" differ in case only' in refusal_without_opening(index)


def test_ten_million_entries_are_refused_before_they_are_read(tmp_path: Path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(b'{"weight_map":{' + b'"":"",' * 10**7 + b'"":""}}')
    assert "more than 1000000 entries" in refusal_without_opening(index)
    os.truncate(index, 2**26 + 1)
    with pytest.raises(InputError, match="67108865 bytes is too large for a shard index"):
        read_shards(index)


@pytest.mark.parametrize(
    "weight_map", [None, [], {}, "x", {"a": 1}, {"a": None}, {"a": ["x.safetensors"]}, {"a": "\ud800.safetensors"}]
)
def test_map_that_is_no_map_of_names_is_refused(tmp_path: Path, weight_map: object):
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        read_shards(index_of(tmp_path, weight_map))


def test_links_of_the_hub_cache_are_followed(tmp_path: Path):
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "f00d").write_bytes(SHARD)
    (snapshot / "x.safetensors").symlink_to("../../blobs/f00d")
    (shard,) = read_shards(index_of(snapshot, {"a": "x.safetensors"}))
    assert [(tensor.name, tensor.file) for tensor in shard.tensors] == [("a", "x.safetensors")]


def test_link_from_a_cache_to_another_repository_is_refused(tmp_path: Path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    other = tmp_path / "models--org--other" / "blobs"
    for folder in (snapshot, other):
        folder.mkdir(parents=True)
    (other / "f00d").write_bytes(SHARD)
    (snapshot / "x.safetensors").symlink_to(other / "f00d")
    assert "leaves the folder" in refusal_without_opening(index_of(snapshot, {"a": "x.safetensors"}))


def test_links_inside_the_folder_and_to_the_folder_are_followed(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "real.safetensors").write_bytes(SHARD)
    (folder / "x.safetensors").symlink_to("real.safetensors")
    (tmp_path / "link").symlink_to("model")
    index_of(folder, {"a": "x.safetensors"})
    assert len(read_shards(tmp_path / "link" / "model.safetensors.index.json")) == 1


def test_part_of_a_split_gguf_may_not_leave_the_folder(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    keys = [key("split.no", 2, b"\0\0"), key("split.count", 2, b"\2\0")]
    first = folder / "x-00001-of-00002.gguf"
    first.write_bytes(gguf(keys))
    (tmp_path / "second").write_bytes(gguf(keys))
    (folder / "x-00002-of-00002.gguf").symlink_to("../second")
    with recorded_events() as events, pytest.raises(InputError, match="leaves the folder"):
        read_gguf(first)
    assert str(tmp_path / "second") not in opened_paths(events)


def test_a_file_may_name_only_what_lies_beside_it(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"")
    assert sibling(tmp_path / "index.json", "x") == Path(os.path.realpath(tmp_path / "x"))
