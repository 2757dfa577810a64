"""Which files make up a checkpoint, and what their headers and configs say."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codesign.errors import InputError
from codesign.files import parse_json, read_text
from codesign.model.config import shown
from codesign.model.file import MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH
from codesign.model.safetensors_file import SafetensorsFile, read_safetensors
from codesign.model.shards import read_shards
from codesign.model.stored_tensor import StoredTensor
from codesign.model.weight_files import INDEX_SUFFIX
from codesign.model.weight_paths import sibling

# Where tools write what they did, in the order in which it is believed: config.json first, then files of their own.
_CONFIG_KEYS = ("quantization_config", "compression_config")
_OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}


@dataclass(frozen=True, slots=True)
class Folder:
    """The tensors of a Hugging Face folder, and what its config says of their quantization (empty if nothing)."""

    config_path: Path
    quantization: Mapping[str, Any]
    tensors: tuple[StoredTensor, ...]
    file_bytes: int


def read_folder(weights: Path) -> Folder:
    """Return the tensors of an index or of one file, and what the configs beside it say."""
    if weights.name.endswith(INDEX_SUFFIX):
        files = read_shards(weights)
    else:
        files = (read_safetensors(sibling(weights, weights.name), weights.name),)
    config_path = weights.parent / "config.json"
    return Folder(config_path, _quantization(config_path, files), _tensors(files), sum(f.file_bytes for f in files))


def read_object(path: Path) -> Mapping[str, Any]:
    """Return the object of a JSON file."""
    value = parse_json(read_text(path, MAX_CONFIG_BYTES, "model config"), str(path), MAX_CONFIG_DEPTH)
    if not isinstance(value, dict):
        raise InputError(f"{path}: a list or a single value is given; one object is wanted.")
    return value


def _tensors(files: tuple[SafetensorsFile, ...]) -> tuple[StoredTensor, ...]:
    return tuple(tensor for file in files for tensor in file.tensors)


def _quantization(config_path: Path, files: tuple[SafetensorsFile, ...]) -> Mapping[str, Any]:
    config = read_object(config_path)
    inner = config.get("text_config")
    places = [config, *([inner] if isinstance(inner, dict) else [])]
    for place in places:
        for key in _CONFIG_KEYS:
            value = place.get(key)
            if value is not None and not isinstance(value, dict):
                raise InputError(f"{config_path}: {key}: {shown(value)} is given; an object is wanted.")
            if value:
                return {"quant_method": "compressed-tensors", **value} if key == _CONFIG_KEYS[1] else value
    for name, method in _OWN_FILES.items():
        if os.path.exists(config_path.parent / name):
            return {"quant_method": method, **read_object(config_path.parent / name)}
    return {}
