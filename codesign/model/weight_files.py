"""Which file of weights a path leads to; nothing is opened."""

import os
from pathlib import Path

from codesign.errors import InputError
from codesign.model.config import shown
from codesign.model.pickled import PICKLE_SUFFIXES, refuse_pickle

INDEX_SUFFIX = ".safetensors.index.json"
WEIGHT_SUFFIX = ".safetensors"
GGUF_SUFFIX = ".gguf"
FILES_MAX = 10_000


def weight_path(given: str) -> Path | None:
    """Return the file of weights that a path leads to: itself, an index, one file, a GGUF; None if there is none.

    InputError if the only weights there are pickled.
    """
    path = Path(os.path.expanduser(given))
    if not os.path.isdir(path):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            refuse_pickle(path, b"")
        named = path.name.endswith((WEIGHT_SUFFIX, INDEX_SUFFIX)) or path.suffix.lower() == GGUF_SUFFIX
        return path if named else None
    names = _file_names(path)
    for suffix, usual in ((INDEX_SUFFIX, "model" + INDEX_SUFFIX), (WEIGHT_SUFFIX, "model" + WEIGHT_SUFFIX)):
        found = [name for name in names if name.endswith(suffix)]
        if found:
            return path / _only(found, usual, path)
    found = [name for name in names if name.lower().endswith(GGUF_SUFFIX)]
    if found and "config.json" not in names:
        first = next((name for name in found if "-00001-of-" in name), "")
        return path / _only(found, first, path)
    pickled = next((name for name in names if name.lower().endswith(PICKLE_SUFFIXES[:4])), None)
    if pickled:
        refuse_pickle(path / pickled, b"")
    return None


def _file_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for _, entry in zip(range(FILES_MAX), entries, strict=False)]
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder: {error.strerror or error}.") from error
    return sorted(names)


def _only(names: list[str], usual: str, folder: Path) -> str:
    if usual in names:
        return usual
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"{folder}: {len(names)} files could be meant, such as {shown(names[0])} and {shown(names[1])}; name one."
    )
