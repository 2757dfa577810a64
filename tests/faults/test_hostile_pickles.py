"""Pickled checkpoints are refused by name and by content, and nothing of them is ever run (A40)."""

import gzip
import io
import json
import pickle
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from crafted_checkpoints import good_safetensors, recorded_events, safetensors

from codesign.errors import InputError
from codesign.model.gguf_file import read_gguf
from codesign.model.safetensors_file import read_safetensors
from codesign.model.shards import read_shards


class Trap:
    """Fails the test that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('a pickle was run')",))


def torch_archive() -> bytes:
    """Return what torch.save writes: a zip archive with a pickle inside."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(), protocol=2))
    return stream.getvalue()


CONTENTS = {
    "torch archive": torch_archive(),
    "torch before 1.6": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(Trap(), protocol=2),
    **{f"protocol {protocol}": pickle.dumps(Trap(), protocol=protocol) for protocol in (2, 3, 4, 5)},
    "joblib with gzip": gzip.compress(pickle.dumps(Trap())),
    "joblib with zlib": zlib.compress(pickle.dumps(Trap())),
}


def refusal(read: object, path: Path) -> str:
    with recorded_events() as events, pytest.raises(InputError) as caught:
        read(path)
    assert not [event for event, _ in events if event.startswith("pickle")]
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib", ".PT"])
@pytest.mark.parametrize("content", [torch_archive(), good_safetensors(), b""])
def test_pickle_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    for read in (read_safetensors, read_gguf):
        message = refusal(read, path)
        assert f"files named *{suffix.lower()} are a pickled checkpoint" in message
        assert "Convert it to safetensors" in message


@pytest.mark.parametrize("content", CONTENTS)
def test_renamed_pickle_is_refused_by_content(tmp_path: Path, content: str):
    for name, read in (("model.safetensors", read_safetensors), ("model.gguf", read_gguf)):
        path = tmp_path / name
        path.write_bytes(CONTENTS[content])
        assert "its first bytes are those of a pickled checkpoint" in refusal(read, path)


def test_index_of_pickled_shards_is_refused(tmp_path: Path):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}))
    assert "files named *.bin are a pickled checkpoint" in refusal(read_shards, index)


def test_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    header = b"{}".ljust(0x0280)  # its length begins with the bytes 80 02, as a pickle of protocol 2 does
    path.write_bytes(safetensors(header))
    assert path.read_bytes()[:2] == pickle.dumps(None, protocol=2)[:2]
    assert read_safetensors(path).tensors == ()


def test_readers_import_neither_torch_nor_the_reference_libraries():
    code = """
import sys
import codesign.model.shards, codesign.model.gguf_file
print(sorted({"torch", "safetensors", "gguf", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
