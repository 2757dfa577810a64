"""The readers and seeds of scripts/fuzz.py, without its fuzzer: every seed is read or refused, most are read."""

import importlib.util
import re
from pathlib import Path

import pytest

from codesign.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"
specification = importlib.util.spec_from_file_location("fuzz_script", SCRIPT)
assert specification is not None
assert specification.loader is not None
fuzz = importlib.util.module_from_spec(specification)
specification.loader.exec_module(fuzz)


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_seeds_reach_the_end_of_their_parser(name, tmp_path):
    make_reader, seeds = fuzz.PARSERS[name]
    read = make_reader(tmp_path)
    refused = 0
    all_seeds = list(seeds())
    for seed in all_seeds:
        try:
            read(seed)
        except InputError:
            refused += 1
    assert len(all_seeds) >= 2
    assert refused <= len(all_seeds) * 0.7


def test_words_of_seeds_become_a_dictionary():
    assert fuzz._words([b'{"weight_map": 4}', b"GGUF\0llama.x"]) == ["GGUF", "llama.x", "weight_map"]
    assert all(re.fullmatch(r"[\w.-]+", word) for word in fuzz._words(fuzz.PARSERS["config"][1]()))
