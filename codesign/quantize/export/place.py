"""Where an export goes: it is made beside its place and moved there whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codesign.errors import InputError
from codesign.units import format_gib


def check_place(out: Path, force: bool, sources: tuple[Path, ...]) -> Path:
    """Return the place with its parent resolved; one that is taken, or that holds what is read, is refused."""
    if not out.name or out.name in (".", ".."):
        raise InputError(f"{out}: give the name of a new folder to write to, not {out.name or 'a root'}.")
    place = out.parent.resolve() / out.name
    if not place.parent.is_dir():
        raise InputError(f"{out}: there is no folder {place.parent}; make it, or write elsewhere.")
    if place.is_symlink():
        raise InputError(f"{out}: this is a link; give the place that it leads to, or another one.")
    for source in sources:
        lies = source.resolve()
        if lies == place or place in lies.parents:
            raise InputError(f"{out}: what is exported is read from there ({lies}); write elsewhere.")
    if place.exists() and not force:
        raise InputError(f"{out}: this exists already; remove it, write elsewhere, or replace it with --force.")
    return place


def check_space(place: Path, needed_bytes: int) -> None:
    """Refuse a disk with less room than an export takes."""
    free_bytes = shutil.disk_usage(place.parent).free
    if needed_bytes > free_bytes:
        raise InputError(
            f"{place}: the export takes about {format_gib(needed_bytes)}, and {format_gib(free_bytes)} are free there; "
            "make room or write to another disk."
        )


@contextmanager
def staged(place: Path, *, single: bool) -> Iterator[Path]:
    """Give a folder beside the place; at the end it takes the place, on any failure nothing is left of it.

    With `single` it is the file in it of the same name that takes the place.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.tmp-", dir=place.parent))
    except OSError as error:
        raise InputError(f"{place}: cannot write here: {error.strerror or error}.") from error
    try:
        yield temporary
        _open_to_others(temporary)
        _take(temporary / place.name if single else temporary, place)
    except OSError as error:
        raise InputError(f"{place}: writing failed: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_to_others(folder: Path) -> None:
    """Give a private folder the permissions that a new one has, and put its files on the disk."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _take(made: Path, place: Path) -> None:
    """Rename into place; what was there is moved aside first, and comes back if the renaming fails."""
    if not place.exists():
        os.rename(made, place)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.old-", dir=place.parent)) / place.name
    os.rename(place, aside)
    try:
        os.rename(made, place)
    except OSError:
        os.rename(aside, place)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)
