"""The conditions of a run: machine, system, libraries, GPUs; each field a value or the reason why there is none.

`env_block` turns them into the `env` block of a record. A shareable block has no host name, user name, absolute path or
raw device id.
"""

import datetime
import getpass
import os
import platform
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codesign.profiler.reading import Reading, absent, plain_reading
from codesign.profiler.software import SOFTWARE
from codesign.profiler.system import CPU, SYSTEM
from codesign.profiler.telemetry_lines import Telemetry

Fields = Mapping[str, Reading[Any]]
ABSOLUTE_PATH = re.compile(r"""(?<![^\s"'=:;,([{<])(?:[A-Za-z]:\\|~?/)[^\s"';,)\]}>]+""")
DEVICE_ID = re.compile(
    r"\b(?:(?:GPU|MIG)-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Environment:
    """The fields by group; `private` is left out of a shareable block."""

    cpu: Fields
    system: Fields
    software: Fields
    gpu_driver: Reading[str]
    gpus: Reading[tuple[Fields, ...]]
    run: Fields
    private: Fields = field(default_factory=dict)


def capture_environment(telemetry: Telemetry, root: Path = Path("/")) -> Environment:
    """Return the environment of now; `root` is where /proc and /sys are looked for."""
    gpus = telemetry.gpus
    return Environment(
        cpu={name: reader(root) for name, reader in CPU.items()},
        system={name: reader(root) for name, reader in SYSTEM.items()},
        software={name: reader() for name, reader in SOFTWARE.items()},
        gpu_driver=telemetry.driver,
        gpus=absent(gpus.why or "") if gpus.value is None else Reading(tuple(gpu.identity for gpu in gpus.value)),
        run={"start_utc": Reading(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))},
        private={name: _guarded(reader) for name, reader in PRIVATE.items()},
    )


def _guarded(reader: Callable[[], str]) -> Reading[str]:
    try:
        return Reading(reader())
    except (OSError, KeyError, ImportError) as error:
        return absent(f"the system does not say ({type(error).__name__})")


PRIVATE: Mapping[str, Callable[[], str]] = {
    "host_name": socket.gethostname,
    "user_name": getpass.getuser,
    "home_folder": lambda: str(Path.home()),
    "working_folder": os.getcwd,
    "platform": platform.platform,
}


def env_block(environment: Environment, shareable: bool) -> dict[str, Any]:
    """Return plain values for JSON: {"value": null, "why": reason} where a field is absent."""
    gpus = environment.gpus
    block: dict[str, Any] = {
        "cpu": _plain(environment.cpu),
        "system": _plain(environment.system),
        "software": _plain(environment.software),
        "gpu_driver": plain_reading(environment.gpu_driver),
        "gpus": plain_reading(gpus) if gpus.value is None else [_plain(one) for one in gpus.value],
        "run": _plain(environment.run),
    }
    if not shareable:
        return {**block, "private": _plain(environment.private)}
    names = {
        f"<{name}>": str(environment.private[name].value)
        for name in ("host_name", "user_name")
        if name in environment.private and environment.private[name].value
    }
    return {key: scrub(value, names) for key, value in block.items()}


def _plain(fields: Fields) -> dict[str, Any]:
    return {name: plain_reading(reading) for name, reading in fields.items()}


def scrub(value: Any, names: Mapping[str, str]) -> Any:
    """Return plain values without absolute paths, raw device ids and the given names, in texts at any depth.

    `names` maps what is written instead to the word that must not appear.
    """
    if isinstance(value, Mapping):
        return {key: scrub(one, names) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(one, names) for one in value]
    return _scrub_text(value, names) if isinstance(value, str) else value


def _scrub_text(text: str, names: Mapping[str, str]) -> str:
    text = DEVICE_ID.sub("<device id>", ABSOLUTE_PATH.sub("<path>", text))
    for replacement, word in names.items():
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", replacement, text)
    return text
