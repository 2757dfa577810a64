"""Read sharded safetensors: the index names the shard of every tensor, and each shard's header must agree."""

from pathlib import Path

from codesign.errors import InputError
from codesign.files import parse_json, read_text
from codesign.model.config import shown
from codesign.model.pickled import refuse_pickle
from codesign.model.safetensors_file import SafetensorsFile, read_safetensors
from codesign.model.weight_paths import check_no_twins, check_plain_name, sibling

INDEX_BYTES_MAX = 2**26
TENSORS_MAX = 10**6
DEPTH_MAX = 8

_SUFFIX = ".safetensors"


def read_shards(index: Path) -> tuple[SafetensorsFile, ...]:
    """Return all shards that an index names, in the order of their names."""
    shard_by_tensor = _weight_map(index)
    names = set(shard_by_tensor.values())
    for name in names:
        check_plain_name(name, str(index))
        refuse_pickle(index.parent / name, b"")
        if not name.endswith(_SUFFIX):
            raise InputError(f"{index}: the shard {shown(name)} is not named *{_SUFFIX}.")
    check_no_twins(names, str(index))
    paths = {name: sibling(index, name) for name in sorted(names)}
    shards = {name: read_safetensors(path, name) for name, path in paths.items()}
    _check_places(index, shard_by_tensor, shards)
    return tuple(shards.values())


def _weight_map(index: Path) -> dict[str, str]:
    """Return the name of the shard by the name of the tensor."""
    text = read_text(index, INDEX_BYTES_MAX, "shard index")
    if text.count(":") > TENSORS_MAX + 1000:
        raise InputError(f"{index}: more than {TENSORS_MAX} entries; at most so many tensors are allowed.")
    value = parse_json(text, str(index), DEPTH_MAX)
    weight_map = value.get("weight_map") if type(value) is dict else None
    if type(weight_map) is not dict or not weight_map:
        raise InputError(f"{index}: weight_map is missing; it gives the shard of every tensor.")
    for tensor, shard in weight_map.items():
        if type(shard) is not str:
            raise InputError(f"{index}: weight_map: {shown(tensor)}: {shown(shard)} is given; a file name is wanted.")
    return weight_map


def _check_places(index: Path, shard_by_tensor: dict[str, str], shards: dict[str, SafetensorsFile]) -> None:
    """Refuse a tensor that is not where the index says, or in two shards; one that the index forgot is kept."""
    holders: dict[str, str] = {}
    for name, shard in shards.items():
        for tensor in shard.tensors:
            other = holders.setdefault(tensor.name, name)
            if other != name:
                raise InputError(
                    f"{index}: the tensor {shown(tensor.name)} is in two shards, {shown(other)} and {shown(name)}."
                )
    for tensor_name, shard_name in shard_by_tensor.items():
        holder = holders.get(tensor_name)
        if holder != shard_name:
            where = f"it is in {shown(holder)}" if holder else "no shard has it"
            raise InputError(
                f"{index}: the tensor {shown(tensor_name)} is not in {shown(shard_name)}, where the index puts it; "
                f"{where}."
            )
