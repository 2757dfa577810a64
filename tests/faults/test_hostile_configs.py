"""Hostile config.json files: each is refused by one sentence with file and key, without a traceback (A44, A45)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codesign.errors import InputError
from codesign.model.file import load_model

GOOD: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
MIXTRAL = GOOD | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


def _with(**changes: object) -> str:
    return json.dumps(GOOD | changes)


def _raw(key: str, literal: str) -> str:
    """Return the good config with the value of one key replaced by this text."""
    return json.dumps(GOOD | {key: "@"}).replace('"@"', literal)


def _without(key: str) -> str:
    return json.dumps({name: value for name, value in GOOD.items() if name != key})


_LAYERS = r"num_hidden_layers: .* is given; a whole number from 1 to 10000 is allowed"
_LATENT = {"kv_lora_rank": 0, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}

HOSTILE: dict[str, tuple[str | bytes, str]] = {
    # wrong values
    "layers -1": (_with(num_hidden_layers=-1), _LAYERS),
    "layers 0": (_with(num_hidden_layers=0), _LAYERS),
    "layers true": (_with(num_hidden_layers=True), _LAYERS),
    "layers 32.5": (_with(num_hidden_layers=32.5), _LAYERS),
    "layers 32.0": (_raw("num_hidden_layers", "32.0"), _LAYERS),
    "layers as text": (_with(num_hidden_layers="32"), _LAYERS),
    "layers 1e18": (_raw("num_hidden_layers", "1e18"), _LAYERS),
    "layers 10^18": (_with(num_hidden_layers=10**18), _LAYERS),
    "layers null": (_with(num_hidden_layers=None), r"num_hidden_layers: nothing is given"),
    "layers a list": (_with(num_hidden_layers=[32]), _LAYERS),
    "layers absent": (_without("num_hidden_layers"), r"num_hidden_layers: nothing is given"),
    "layers NaN": (_raw("num_hidden_layers", "NaN"), r"NaN is not JSON"),
    "layers Infinity": (_raw("num_hidden_layers", "-Infinity"), r"-Infinity is not JSON"),
    "layers 1e999": (_raw("num_hidden_layers", "1e999"), r"1e999 is beyond the range of numbers"),
    "5,000 digits": (_raw("num_hidden_layers", "9" * 5000), r"a number is too long"),
    "4,000 digits": (_raw("num_hidden_layers", "9" * 4000), r"num_hidden_layers: 9{60}\.\.\. is given"),
    "hidden 2^20 + 1": (_with(hidden_size=2**20 + 1), r"hidden_size: 1048577 is given"),
    "vocabulary 2^24 + 1": (_with(vocab_size=2**24 + 1), r"vocab_size: 16777217 is given"),
    "context 2^28 + 1": (_with(max_position_embeddings=2**28 + 1), r"max_position_embeddings: 268435457 is given"),
    "tied as number": (_with(tie_word_embeddings=1), r"tie_word_embeddings: 1 is given; true or false is allowed"),
    "bias as text": (_with(attention_bias="false"), r'attention_bias: "false" is given; true or false'),
    # values that do not fit together
    "heads do not divide": (_with(num_attention_heads=33, num_key_value_heads=33), r"num_attention_heads: 33 is given"),
    "KV heads do not divide": (_with(num_key_value_heads=5), r"num_key_value_heads: 5 is given; a divisor of the 32"),
    "more KV heads than heads": (_with(num_key_value_heads=64), r"num_key_value_heads: 64 is given; a divisor"),
    "top-k above experts": (json.dumps(MIXTRAL | {"num_experts_per_tok": 9}), r"num_experts_per_tok: 9 .* at most the"),
    "experts 2^14 + 1": (json.dumps(MIXTRAL | {"num_local_experts": 2**14 + 1}), r"num_local_experts: 16385 is given"),
    "no experts": (json.dumps(MIXTRAL | {"num_local_experts": 0}), r"num_local_experts: 0 is given"),
    "list too short": (
        json.dumps(GOOD | {"model_type": "gemma2", "head_dim": 128, "layer_types": ["full_attention"] * 31}),
        r"layer_types: 31 entries are given; one for each of the 32 blocks",
    ),
    "list too long in a family without windows": (
        _with(layer_types=["full_attention"] * 33),
        r"layer_types: 33 entries are given; one for each of the 32 blocks",
    ),
    "unknown kind of layer": (_with(layer_types=["mamba"] * 32), r'layer_types: "mamba" is given'),
    "layer kinds as object": (_with(layer_types={"0": "full_attention"}), r"layer_types: .* a list of at most"),
    "unhashable layer kind": (_with(layer_types=[["full_attention"]] * 32), r"layer_types: \[\"full"),
    "dense blocks as text": (
        json.dumps(GOOD | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2,
                           "moe_intermediate_size": 64, "mlp_only_layers": ["1"]}),
        r'mlp_only_layers: "1" is given',
    ),
    "latent rank 0": (json.dumps(GOOD | {"model_type": "deepseek_v3"} | _LATENT), r"kv_lora_rank: 0 is given"),
    "more than 10^15 parameters": (
        _with(hidden_size=2**20, intermediate_size=2**24, num_hidden_layers=10**4, vocab_size=2**24),
        r"parameters; at most 10\^15 are allowed",
    ),
    # architectures
    "unknown type": (_with(model_type="llamma"), r'model_type: "llamma" is not .*Nearest are llama'),
    "unknown type with code": (
        _with(model_type="mistral9", auto_map={"AutoModel": "evil.Model"}),
        r'model_type: "mistral9" is not .*Nearest are .*mistral.*auto_map names is never loaded',
    ),
    "no type": (_without("model_type"), r"model_type: nothing is given; a text is needed: known are gpt2"),
    "type a list": (_with(model_type=["llama"]), r'model_type: \["llama"\] is given'),
    "type long": (_with(model_type="x" * 10**6), r'model_type: "x{59}\.\.\. is not'),
    "text part missing": ('{"model_type": "gemma3"}', r"text_config: nothing is given; an object is allowed"),
    "text part a list": ('{"model_type": "gemma3", "text_config": []}', r"text_config: \[\] is given"),
    "text part wrong": (
        '{"model_type": "gemma3", "text_config": {"num_hidden_layers": true}}',
        r"text_config\.num_hidden_layers: true is given",
    ),
    # not a config at all
    "empty": ("", r"not valid JSON"),
    "a list": ("[]", r"a config\.json holds one object"),
    "a number": ("1", r"a config\.json holds one object"),
    "cut off": (_with()[:-1], r"not valid JSON"),
    "trailing text": (_with() + "x", r"not valid JSON"),
    "duplicate key": ('{"model_type": "llama", "model_type": "gpt2"}', r'the key "model_type" appears twice'),
    "lone surrogate": (_raw("model_type", r'"\ud800"'), r"half of a surrogate pair"),
    "lone surrogate in a key": (_with()[:-1] + r', "\udc00": 1}', r"half of a surrogate pair"),
    "UTF-16": (_with().encode("utf-16"), r"must be UTF-8 text"),
    "Latin-1": (b'{"model_type": "\xe9"}', r"must be UTF-8 text"),
    "NUL bytes": (b"\0" * 100, r"not valid JSON"),
    "100k brackets": ("[" * 100_000, r"nested deeper than 64 levels"),
    "100k objects": ('{"a":' * 100_000, r"nested deeper than 64 levels"),
    "deep value": (_raw("rope_scaling", "[" * 70 + "]" * 70), r"nested deeper than 64 levels"),
    "9 MiB": (_with(note="x" * 9 * 2**20), r"too large for a model config"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_refused_with_file_and_key(name: str, tmp_path: Path):
    text, message = HOSTILE[name]
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    with pytest.raises(InputError, match=message) as caught:
        load_model(path)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert len(said) < 800
    assert "\n" not in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_the_unchanged_config_is_accepted(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(_with(), encoding="utf-8")
    assert load_model(path).parameter_count == 6_738_415_616
    path.write_text(json.dumps(MIXTRAL), encoding="utf-8")
    assert load_model(path).blocks[0].experts is not None


def test_a_config_must_be_a_regular_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"config\.json: cannot read this model config: No such file"):
        load_model(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="must be a regular file"):
        load_model(tmp_path)
    (tmp_path / "other" / "config.json").mkdir(parents=True)
    with pytest.raises(InputError, match="must be a regular file"):
        load_model(tmp_path / "other")


@pytest.mark.parametrize(
    "name",
    ["", " ", "./a\0b", "a\0b", "x" * 5000, "./" + "x" * 5000, "~nobody-at-all/x", "\udcff", "./\udcff.json", "/"],
)
def test_hostile_names_and_paths(name: str):
    with pytest.raises(InputError):
        load_model(name)


@pytest.mark.parametrize("case", ["5,000 digits", "lone surrogate", "100k brackets", "unknown type with code"])
def test_the_command_line_says_one_sentence_and_exits_3(case: str, tmp_path: Path):
    text = HOSTILE[case][0]
    assert isinstance(text, str)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit(99)", encoding="utf-8")
    command = [sys.executable, "-m", "codesign", "model", "show", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
