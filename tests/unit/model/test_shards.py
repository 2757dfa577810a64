import json
import os
from pathlib import Path

import pytest
from crafted_checkpoints import entry, no_hang, safetensors

from codesign.errors import InputError
from codesign.model.shards import read_shards

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_shards(folder: Path, shards: dict[str, list[str]], weight_map: dict[str, str]) -> Path:
    """Write shards of tensors of four bytes, and an index."""
    for name, tensors in shards.items():
        header = {tensor: entry("F32", [1], 4 * place, 4 * place + 4) for place, tensor in enumerate(tensors)}
        (folder / name).write_bytes(safetensors(header, bytes(4 * len(tensors))))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_come_in_the_order_of_their_names(tmp_path: Path):
    index = write_shards(tmp_path, {SECOND: ["c"], FIRST: ["b", "a"]}, {"c": SECOND, "a": FIRST, "b": FIRST})
    first, second = read_shards(index)
    assert [(tensor.name, tensor.file) for tensor in first.tensors] == [("b", FIRST), ("a", FIRST)]
    assert [(tensor.name, tensor.file) for tensor in second.tensors] == [("c", SECOND)]
    assert first.file_bytes == (tmp_path / FIRST).stat().st_size


def test_tensor_that_the_index_forgot_is_listed(tmp_path: Path):
    index = write_shards(tmp_path, {FIRST: ["a", "inv_freq"]}, {"a": FIRST})
    assert [tensor.name for shard in read_shards(index) for tensor in shard.tensors] == ["a", "inv_freq"]


def test_missing_shard_is_named_with_the_index(tmp_path: Path):
    index = write_shards(tmp_path, {FIRST: ["a"]}, {"a": FIRST, "b": SECOND})
    with pytest.raises(InputError, match=rf'index\.json: the file "{SECOND}" is missing'):
        read_shards(index)


def test_tensor_in_the_wrong_shard_is_named_with_both(tmp_path: Path):
    index = write_shards(tmp_path, {FIRST: ["a", "b"], SECOND: ["c"]}, {"a": FIRST, "b": SECOND, "c": SECOND})
    with pytest.raises(InputError, match=rf'the tensor "b" is not in "{SECOND}", .* it is in "{FIRST}"'):
        read_shards(index)


def test_tensor_in_no_shard_and_in_two_shards(tmp_path: Path):
    index = write_shards(tmp_path, {FIRST: ["a"]}, {"a": FIRST, "b": FIRST})
    with pytest.raises(InputError, match=rf'the tensor "b" is not in "{FIRST}", .* no shard has it'):
        read_shards(index)
    index = write_shards(tmp_path, {FIRST: ["a"], SECOND: ["a"]}, {"a": FIRST, "b": SECOND})
    with pytest.raises(InputError, match=rf'"a" is in two shards, "{FIRST}" and "{SECOND}"'):
        read_shards(index)


def test_broken_shard_is_named(tmp_path: Path):
    index = write_shards(tmp_path, {FIRST: ["a"], SECOND: ["b"]}, {"a": FIRST, "b": SECOND})
    os.truncate(tmp_path / SECOND, 60)
    with pytest.raises(InputError, match=rf"{SECOND}: byte 8: the header needs"):
        read_shards(index)


def test_tensor_twice_at_the_end_of_a_long_index_is_found_quickly(tmp_path: Path):
    index = tmp_path / "model.safetensors.index.json"
    entries = [f'"t{number}":"x"' for number in range(100_000)]
    index.write_text('{"weight_map":{' + ",".join([*entries, '"\\u001b":"x"', '"\\u001b":"x"']) + "}}")
    with no_hang(), pytest.raises(InputError, match=r'the key "\\u001b" appears twice'):
        read_shards(index)


def test_191_shards_of_a_405b_model(tmp_path: Path):
    """Llama 3.1 405B: 126 blocks of nine tensors and three more, 2 bytes a weight; the data are holes in the files."""
    hidden, wide, kv, vocabulary = 16_384, 53_248, 1_024, 128_256
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "lm_head.weight": [vocabulary, hidden]}
    shapes["model.norm.weight"] = [hidden]
    for block in range(126):
        prefix = f"model.layers.{block}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qo"}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": [kv, hidden] for name in "kv"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": [wide, hidden] for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": [hidden, wide]}
        shapes |= {f"{prefix}{name}_layernorm.weight": [hidden] for name in ("input", "post_attention")}
    weight_map = {}
    names = list(shapes)
    for shard in range(191):
        header, end = {}, 0
        file = f"model-{shard + 1:05}-of-00191.safetensors"
        for name in names[shard::191]:
            start, values = end, 1
            for size in shapes[name]:
                values *= size
            end += 2 * values
            header[name] = entry("BF16", shapes[name], start, end)
            weight_map[name] = file
        data = safetensors(header)
        (tmp_path / file).write_bytes(data)
        os.truncate(tmp_path / file, len(data) + end)
    index = write_shards(tmp_path, {}, weight_map)
    with no_hang(cpu_s=1.0):
        shards = read_shards(index)
    assert len(shards) == 191
    assert sum(tensor.byte_count for shard in shards for tensor in shard.tensors) == 2 * 405_853_388_800
    # The count of weights is that of tests/golden/test_parameter_counts.py.
