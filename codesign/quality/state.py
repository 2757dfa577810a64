"""What a measurement has found so far, on disk, so that a run that was stopped goes on where it was."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

_BYTES_MAX = 2**28


class State:
    """A folder of values by name and of one set of tensors. `settings` is what they depend on.

    A folder of other settings is refused, not mixed, unless `force` empties it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, force: bool = False) -> None:
        self._path, self._values_file, self._tensor_file = path, path / "values.json", path / "tensors.safetensors"
        wanted = json.loads(to_json(dict(settings)))
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: a file lies where the state of the run is kept; move it away.")
        path.mkdir(parents=True, exist_ok=True)
        found = self._read(path / "settings.json")
        if force and found != wanted:
            self.remove()
            path.mkdir()
            found = None
        if found is None:
            write_atomic(path / "settings.json", to_json(wanted))
        elif found != wanted:
            differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise InputError(
                f"{path}: an unfinished run with other settings lies here ({', '.join(differing)} differ). "
                "Remove it with --force, or give the settings that it was begun with."
            )
        self._values: dict[str, Any] = self._read(self._values_file) or {}

    def _read(self, file: Path) -> Any:
        return parse_json(read_text(file, _BYTES_MAX, "state"), str(file)) if file.exists() else None

    def get(self, name: str) -> Any:
        """Return a value that was kept, None if there is none."""
        return self._values.get(name)

    def keep(self, values: Mapping[str, Any]) -> None:
        """Keep plain values, all or none."""
        self._values.update(values)
        write_atomic(self._values_file, to_json(self._values))

    def tensors(self) -> "dict[str, Tensor]":
        """Return the tensors that were kept last, none at first."""
        if not self._tensor_file.exists():
            return {}
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(os.fspath(self._tensor_file))
        return tensors

    def keep_tensors(self, tensors: "Mapping[str, Tensor]") -> None:
        """Replace the tensors, whole or not at all."""
        from safetensors.torch import save_file

        partial = self._tensor_file.with_suffix(".partial")
        save_file({name: value.contiguous() for name, value in tensors.items()}, os.fspath(partial))
        os.replace(partial, self._tensor_file)

    def remove(self) -> None:
        """Remove the folder, after the result is written or to begin anew."""
        shutil.rmtree(self._path, ignore_errors=True)
