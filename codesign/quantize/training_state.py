"""The state of a training on disk: one safetensors file with parameters and moments, its step in the metadata."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codesign.errors import InputError

_COPIES = 3  # the values and the two moments of Adam
_FLOAT_BYTES = 4


def state_bytes(trained_count: int) -> float:
    """Return the size of a state."""
    return float(trained_count * _COPIES * _FLOAT_BYTES)


def save_state(path: Path, step: int, trained: Mapping[str, Any], optimizer: Any) -> None:
    """Keep the state after so many steps, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in trained.items():
        tensors[name] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}::{key}"] = value.detach().cpu().contiguous()
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, {"step": str(step)})
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: the state of the training cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def restore_state(path: Path, trained: Mapping[str, Any], optimizer: Any) -> int:
    """Put a state back that was kept and return its step; 0 where there is none."""
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return 0
    try:
        with safe_open(os.fspath(path), framework="pt") as file, torch.no_grad():
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
            step = int(file.metadata()["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: this state of a training is damaged; remove it to begin anew. ({error})") from error
    if not set(trained) <= set(kept):
        raise InputError(f"{path}: this state is of another training; remove it to begin anew.")
    for name, parameter in trained.items():
        parameter.data.copy_(kept.pop(name))
    for name, value in kept.items():
        owner, _, key = name.rpartition("::")
        optimizer.state[trained[owner]][key] = value.to(trained[owner].device, copy=True)
    return step
