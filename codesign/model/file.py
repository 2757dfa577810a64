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
from codesign.model.layers import Model

MAX_CONFIG_BYTES = 8 * 2**20
MAX_CONFIG_DEPTH = 64
_CATALOG = Path(__file__).resolve().parent / "catalog"


def load_model(name_or_path: str | os.PathLike[str]) -> Model:
    """Return a model by catalog name, Hugging Face id, config.json or folder; InputError says what is wrong.

    A name of the catalog wins over a folder of that name; write `./NAME` for the folder.
    """
    return load_model_with_warnings(name_or_path)[0]


def load_model_with_warnings(name_or_path: str | os.PathLike[str]) -> tuple[Model, tuple[str, ...]]:
    """Return a model and what its reader should know, such as code named by the config that is never loaded."""
    path = _path(name_or_path)
    if path is None:
        return _load_catalog_model(resolve_model_name(os.fspath(name_or_path))), ()
    where = _shown(str(path))
    text = read_text(path, MAX_CONFIG_BYTES, "model config")
    values = parse_json(text, where, MAX_CONFIG_DEPTH)
    model = build_model(values, where)
    return replace(model, name=_shown(path.resolve().parent.name) or model.name), config_warnings(values, where)


def list_models() -> tuple[str, ...]:
    """Return the names of all models of the catalog, sorted."""
    return tuple(sorted(path.stem for path in _CATALOG.glob("*.json")))


def resolve_model_name(name: str) -> str:
    """Return the catalog name of a model given by name, alias or Hugging Face id, in any case and with `_` or `-`."""
    wanted = _normal_name(name)
    if wanted in list_models():
        return wanted
    known = _other_names()
    if wanted in known:
        return known[wanted]
    hint = did_you_mean(wanted[:80], (*list_models(), *known))
    raise InputError(
        f'No model is called "{_shown(name)}".{hint} Run "codesign model list" for all names, '
        "or give the path of a config.json or of the folder that holds it."
    )


def read_entry(name: str) -> Mapping[str, Any]:
    """Return the catalog file of a canonical name: its ids, config and published total."""
    entry: dict[str, Any] = json.loads((_CATALOG / f"{name}.json").read_text(encoding="utf-8"))
    return entry


def _path(name_or_path: str | os.PathLike[str]) -> Path | None:
    """Return the config.json meant, None if a catalog name or id is meant."""
    given = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and _is_known(given):
        return None
    looks_like_path = not isinstance(name_or_path, str) or given.endswith(".json") or given.startswith((".", "/", "~"))
    if "\0" in given or not (looks_like_path or os.path.exists(given)):
        return None
    path = Path(given).expanduser()
    return path / "config.json" if os.path.isdir(path) else path


def _is_known(name: str) -> bool:
    wanted = _normal_name(name)
    return wanted in list_models() or ("." not in wanted[:1] and wanted in _other_names())


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
