import json
from pathlib import Path

import pytest
from crafted_checkpoints import entry, good_safetensors, safetensors

from codesign.errors import InputError
from codesign.model.safetensors_file import BITS_BY_DTYPE, read_safetensors
from codesign.model.stored_tensor import StoredTensor


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    header = {"b": entry("I64", [2], 6, 22), "c": entry("F16", [3, 1], 0, 6), "a": entry("U8", [5], 22, 27)}
    path.write_bytes(safetensors(header, bytes(27)))
    file = read_safetensors(path)
    assert file.tensors == (
        StoredTensor("c", "F16", (3, 1), 6, "model.safetensors"),
        StoredTensor("b", "I64", (2,), 16, "model.safetensors"),
        StoredTensor("a", "U8", (5,), 5, "model.safetensors"),
    )
    assert file.metadata == {}


def test_metadata_size_and_odd_tensors(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(good_safetensors())
    file = read_safetensors(path)
    assert file.metadata == {"format": "pt", "note": "é\\n"}
    assert file.file_bytes == len(good_safetensors())
    by_name = {tensor.name: tensor for tensor in file.tensors}
    assert (by_name["empty"].shape, by_name["empty"].byte_count) == ((0, 7), 0)
    assert (by_name["scale"].shape, by_name["scale"].byte_count) == ((), 4)
    assert (by_name["packed"].dtype, by_name["packed"].byte_count) == ("F4", 8)


@pytest.mark.parametrize("dtype", BITS_BY_DTYPE)
def test_every_dtype_takes_its_bits(tmp_path: Path, dtype: str):
    path = tmp_path / "x"
    byte_count = BITS_BY_DTYPE[dtype]  # of eight values
    path.write_bytes(safetensors({"a": entry(dtype, [2, 4], 0, byte_count)}, bytes(byte_count)))
    assert read_safetensors(path).tensors[0].byte_count == byte_count


def test_given_name_stands_for_that_of_a_blob(tmp_path: Path):
    path = tmp_path / "f00d"
    path.write_bytes(good_safetensors())
    assert {tensor.file for tensor in read_safetensors(path, "x.safetensors").tensors} == {"x.safetensors"}
    with pytest.raises(InputError, match="pickled"):
        read_safetensors(path, "x.bin")


def test_names_with_escapes_are_shown_escaped(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(safetensors(json.dumps({"a\x1b[2J": entry("F32", [2], 0, 4)}), bytes(4)))
    with pytest.raises(InputError) as caught:
        read_safetensors(path)
    assert r'"a\u001b[2J" has 2 values' in str(caught.value)
    assert str(caught.value).isprintable()
