"""Find models by catalog name, Hugging Face id or path. The catalog holds one small JSON file per model."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from codesign.errors import InputError, did_you_mean
from codesign.files import parse_json, read_text
from codesign.model.architectures import build_model, config_warnings
from codesign.model.gguf_file import read_gguf
from codesign.model.gguf_model import gguf_model, refuse_unknown_types
from codesign.model.layers import Model
from codesign.model.weight_files import GGUF_SUFFIX, WEIGHT_SUFFIX, weight_path

MAX_CONFIG_BYTES = 8 * 2**20
MAX_CONFIG_DEPTH = 64
_CATALOG = Path(__file__).resolve().parent / "catalog"


def load_model(name_or_path: str | os.PathLike[str]) -> Model:
    """Return a model by catalog name, Hugging Face id, or path; InputError says what is wrong.

    A path leads to a config.json, its folder, a file of weights beside it, or a GGUF file.

    A name of the catalog wins over a folder of that name; write `./NAME` for the folder.
    """
    return load_model_with_warnings(name_or_path)[0]


def load_model_with_warnings(name_or_path: str | os.PathLike[str]) -> tuple[Model, tuple[str, ...]]:
    """Return a model and what its reader should know, such as code named by the config that is never loaded."""
    given = os.fspath(name_or_path)
    if isinstance(name_or_path, str):
        name = _known_name(given)
        if name is None and not _is_path(given):
            name = resolve_model_name(given)
        if name is not None:
            return _load_catalog_model(name), ()
    return _load_file(given)


def list_models() -> tuple[str, ...]:
    """Return the names of all models of the catalog, sorted."""
    return tuple(sorted(path.stem for path in _CATALOG.glob("*.json")))


def resolve_model_name(name: str) -> str:
    """Return the catalog name of a model given by name, alias or Hugging Face id, in any case and with `_` or `-`."""
    known = _known_name(name)
    if known is not None:
        return known
    hint = did_you_mean(_normal_name(name)[:80], (*list_models(), *_other_names()))
    raise InputError(
        f'No model is called "{_shown(name)}".{hint} Run "codesign model list" for all names, '
        "or give the path of a config.json or of the folder that holds it."
    )


def read_entry(name: str) -> Mapping[str, Any]:
    """Return the catalog file of a canonical name: its ids, config and published total."""
    entry: dict[str, Any] = json.loads((_CATALOG / f"{name}.json").read_text(encoding="utf-8"))
    return entry


def _known_name(name: str) -> str | None:
    wanted = _normal_name(name)
    return wanted if wanted in list_models() else _other_names().get(wanted)


def is_model_path(given: str) -> bool:
    """Return whether a text leads to a file or folder, not to the catalog, whose names win."""
    return _known_name(given) is None and _is_path(given)


def _is_path(given: str) -> bool:
    return (
        given.endswith((".json", WEIGHT_SUFFIX, GGUF_SUFFIX))
        or given.startswith((".", "/", "~"))
        or os.path.exists(given)
    )


def _load_file(given: str) -> tuple[Model, tuple[str, ...]]:
    if "\0" in given:
        raise InputError(f"{_shown(given)}: a path cannot hold a zero byte.")
    path = Path(os.path.expanduser(given))
    weights = None if os.path.exists(path / "config.json") else weight_path(given)
    if weights is not None and weights.suffix.lower() == GGUF_SUFFIX:
        return _load_gguf(weights), ()
    path = path / "config.json" if os.path.isdir(path) else path if weights is None else path.with_name("config.json")
    where = _shown(str(path))
    values = parse_json(read_text(path, MAX_CONFIG_BYTES, "model config"), where, MAX_CONFIG_DEPTH)
    model = build_model(values, where)
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return replace(model, name=_shown(folder) or model.name), config_warnings(values, where)


def _load_gguf(path: Path) -> Model:
    file = read_gguf(path)
    refuse_unknown_types(file)
    return gguf_model(file)


@lru_cache(maxsize=64)
def _load_catalog_model(name: str) -> Model:
    entry = read_entry(name)
    model = build_model(entry["config"], f"{name}.json")
    return replace(model, name=name, source=entry["config_source"])


@lru_cache(maxsize=1)
def _other_names() -> Mapping[str, str]:
    """Return aliases and Hugging Face ids, with and without the owner, each with its catalog name."""
    known: dict[str, str] = {}
    for name in list_models():
        entry = read_entry(name)
        for other in (*entry.get("aliases", ()), *entry["hf_ids"]):
            known[_normal_name(other)] = name
            known.setdefault(_normal_name(other.rpartition("/")[2]), name)
    return known


def _normal_name(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def _shown(text: str) -> str:
    """Return an untrusted name for messages: escaped and cut short."""
    return ascii(text[:200])[1:-1]
