"""Ten thousand changed files per format: read or refused, never another exception, a hang or a crash (A37)."""

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import safetensors as reference
from crafted_checkpoints import good_gguf, good_safetensors, mutated, no_hang

from codesign.errors import InputError
from codesign.model.gguf_file import read_gguf
from codesign.model.safetensors_file import read_safetensors

COUNT = 10_000
SEED = 20260801
STRICTER = re.compile(r"given twice|the header begins with|must be an object with|the dtype \{")


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """Return the message, None if the file is read."""
    try:
        with no_hang():
            read(path)
    except InputError as error:
        return str(error)
    return None


def test_changed_gguf_files(tmp_path: Path):
    rng, path = random.Random(SEED), tmp_path / "x.gguf"
    sentences: Counter[str | None] = Counter()
    for number in range(COUNT):
        path.write_bytes(mutated(good_gguf(2 + number % 2), rng))
        message = refusal(read_gguf, path)
        assert message is None or re.match(rf"{re.escape(str(path))}: byte \d+: .*\.$", message), message
        sentences[message and re.sub(r"\d+|\".*?\"", "N", message)] += 1
    assert 100 < sentences[None] < COUNT / 2
    assert len(sentences) > 20


def test_changed_safetensors_files(tmp_path: Path):
    rng, path = random.Random(SEED), tmp_path / "x.safetensors"
    sentences: Counter[str | None] = Counter()
    for _ in range(COUNT):
        data = mutated(good_safetensors(), rng)
        path.write_bytes(data)
        message = refusal(read_safetensors, path)
        assert message is None or message.startswith(f"{path}: byte "), message
        try:
            reference.deserialize(data)
        except reference.SafetensorError:
            assert message is not None
        else:
            assert message is None or STRICTER.search(message), message
        sentences[message and re.sub(r"\d+|\".*?\"", "N", message)] += 1
    assert 100 < sentences[None] < COUNT / 2
    assert len(sentences) > 20
