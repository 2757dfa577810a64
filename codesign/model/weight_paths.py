"""Which files a checkpoint may name: plain files beside it, and the blobs of the hub cache that its links point to."""

import os
from pathlib import Path

from codesign.errors import InputError
from codesign.model.config import shown

NAME_BYTES_MAX = 255


def sibling(naming: Path, name: str) -> Path:
    """Return the file beside `naming` that it names, with links resolved; nothing is opened."""
    check_plain_name(name, str(naming))
    folder = naming.parent
    try:
        root = Path(os.path.realpath(folder, strict=True))
        target = Path(os.path.realpath(root / name, strict=True))
        regular = target.is_file()
    except FileNotFoundError as error:
        raise InputError(f"{naming}: the file {shown(name)} is missing.") from error
    except OSError as error:
        raise InputError(f"{naming}: cannot look up {shown(name)}: {error.strerror or error}.") from error
    if not target.is_relative_to(root) and target.parent != _blobs(root):
        raise InputError(f"{naming}: {shown(name)} is a link that leaves the folder; put the file itself there.")
    if not regular:
        raise InputError(f"{naming}: {shown(name)} must be a regular file.")
    return target


def check_plain_name(name: str, where: str) -> None:
    """Refuse anything but the name of a file in the same folder, on every system."""
    plain = name.isprintable() and not set(name) & set("/\\:") and name not in ("", ".", "..")
    if not plain or len(name.encode("utf-8")) > NAME_BYTES_MAX:
        raise InputError(f"{where}: {shown(name)} is no plain file name; files lie beside the file that names them.")


def check_no_twins(names: set[str], where: str) -> None:
    """Refuse names that some systems take for the same file."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(f"{where}: {shown(other)} and {shown(name)} differ in case only.")


def _blobs(root: Path) -> Path | None:
    """Return the blob folder of `models--x/snapshots/REVISION` or of a folder inside it."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots":
            return folder.parent.parent / "blobs"
    return None
