"""Checkpoints of every kind with random changes: a clean error or a full account, never anything else."""

import copy
import random

import pytest

from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.errors import InputError
from codesign.model.safetensors_file import read_safetensors
from tests.checkpoint_kinds import KINDS
from tests.crafted_checkpoints import no_hang
from tests.tiny_checkpoints import llama, write_folder

JUNK = (None, 0, -1, 2**40, 1.5, True, "", "x", "re:(", "re:.*", [], [1], ["a"], {}, {"a": 1}, {"a": {"b": []}})
DTYPES = ("BF16", "F32", "U8", "I8", "I32", "F8_E4M3", "F8_E8M0", "I64")


def changed_values(value, rng):
    """Return a config with one entry, at any depth, replaced or left out."""
    value = copy.deepcopy(value)
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return value
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
        elif rng.random() < 0.2:
            del at[key]
            return value
        else:
            at[key] = rng.choice(JUNK)
            return value


def changed_tensors(tensors, rng):
    """Return the tensors with one to four of them changed, renamed or left out."""
    tensors = dict(tensors)
    for name in rng.sample(sorted(tensors), rng.randint(1, 4)):
        dtype, shape = tensors.pop(name)
        match rng.randrange(5):
            case 0:
                tensors[name] = (rng.choice(DTYPES), shape)
            case 1:
                tensors[name] = (dtype, tuple(rng.choice((0, 1, 3, 64, size)) for size in shape))
            case 2:
                tensors[name] = (dtype, shape[1:] if rng.random() < 0.5 else (*shape, 2))
            case 3:
                tensors[name.replace(rng.choice("._lw"), rng.choice("._x"))] = (dtype, shape)
    return tensors


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_checkpoint_is_refused_or_accounted_in_full(kind, tmp_path):
    maker, quantization, _ = KINDS[kind]
    rng = random.Random(kind)
    read = 0
    for _ in range(30):
        tensors = changed_tensors(llama(maker), rng)
        config = changed_values(quantization, rng) if quantization and rng.random() < 0.5 else quantization
        folder = write_folder(tmp_path, tensors, config)
        with no_hang():
            try:
                checkpoint = read_checkpoint(str(folder))
            except InputError:
                continue
        stored = read_safetensors(folder / "model.safetensors")
        assert checkpoint.tensor_bytes == sum(tensor.byte_count for tensor in stored.tensors)
        read += 1
    assert read > 0
