"""Find the shipped profiles by name or alias without parsing them."""

import re
from pathlib import Path

from codesign.errors import InputError, did_you_mean
from codesign.files import read_text

MAX_PROFILE_BYTES = 2**18
_HEAD_CHARACTERS = 4000
_ALIASES = re.compile(r"^aliases: *\[(.*)\]", re.MULTILINE)
NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,79}")


def profile_folder() -> Path:
    """Return the folder of the shipped profiles: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "hwprofiles"
    return installed if installed.is_dir() else package.parent / "hwprofiles"


def list_hardware() -> tuple[str, ...]:
    """Return the canonical names of all shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in profile_folder().glob("*.yaml")))


def profile_path(name: str) -> Path:
    """Return the file of a canonical name."""
    return profile_folder() / f"{name}.yaml"


def normal_name(name: str) -> str:
    """Return a name as profiles spell it: lower case, hyphens for underscores and spaces."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def read_aliases(name: str) -> tuple[str, ...]:
    """Return the aliases of a shipped profile, read from the one line that holds them."""
    head = read_text(profile_path(name), MAX_PROFILE_BYTES, "hardware profile")[:_HEAD_CHARACTERS]
    found = _ALIASES.search(head)
    words = found.group(1).split(",") if found else []
    return tuple(word.strip().strip("\"'") for word in words if word.strip())


def resolve_hardware_name(name: str) -> str:
    """Return the canonical name of a profile given by name or alias, in any case and with `_` or `-`."""
    wanted = normal_name(name)
    names = list_hardware()
    if wanted in names:
        return wanted
    aliases = {alias: canonical for canonical in names for alias in read_aliases(canonical)}
    if wanted in aliases:
        return aliases[wanted]
    hint = did_you_mean(wanted[:80], (*names, *aliases))
    shown = ascii(name[:80])[1:-1]
    raise InputError(
        f'No hardware is called "{shown}".{hint} Run "codesign hw list" for all names, or give the path of a .yaml.'
    )
