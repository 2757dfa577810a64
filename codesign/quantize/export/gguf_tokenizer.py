"""The tokenizer of a GGUF file: copied from a GGUF source, else byte-level BPE from what `tokenizer.json` holds.

Source: ggml-org/ggml, docs/gguf.md (tokenizer.ggml.*); llama.cpp, llama-vocab.cpp: names of the ways to split text.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from codesign.errors import InputError
from codesign.quantize.gguf_source import GgufSource
from codesign.quantize.source import WeightSource

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_KEYS = "tokenizer."
# What the expressions that split text contain, and llama.cpp's name of that way to split.
_SPLITS = (("\\p{N}{1,3}", "llama-bpe"), ("|\\p{N}|", "qwen2"))
_SPECIAL = ("bos", "eos", "unk", "pad")


def write_tokenizer(writer: Any, source: WeightSource) -> list[str]:
    """Add the keys of the tokenizer; return warnings."""
    if isinstance(source, GgufSource):
        return _copy(writer, source)
    try:
        tokenizer = source.tokenizer()
    except InputError as error:
        return [f"No tokenizer is written, so that llama.cpp will not load the file: {error}"]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {}
    kinds = {part["type"] for part in _parts(content.get("pre_tokenizer"))}
    if content.get("model", {}).get("type") != "BPE" or "ByteLevel" not in kinds:
        return ["The tokenizer is not byte-level BPE and is left out: llama.cpp will not load the file without one."]
    _write_bpe(writer, tokenizer, content, source.config.vocab_size)
    return _write_split(writer, content)


def _copy(writer: Any, source: GgufSource) -> list[str]:
    """Add the keys of the source's file as they are."""
    from gguf import GGUFReader, GGUFValueType

    for key, field in GGUFReader(source.path).fields.items():
        if key.startswith(_KEYS):
            kind, inner = field.types[0], field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    return []


def _write_bpe(writer: Any, tokenizer: Any, content: Mapping[str, Any], vocabulary: int) -> None:
    tokens = {number: (token, _NORMAL) for token, number in content["model"]["vocab"].items()}
    for added in content.get("added_tokens", ()):
        tokens[added["id"]] = (added["content"], _CONTROL if added["special"] else _USER_DEFINED)
    every = [tokens.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(max(vocabulary, *tokens) + 1)]
    every = every[: max(vocabulary, max(tokens) + 1)]
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in every])
    writer.add_token_types([kind for _, kind in every])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name in _SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _write_split(writer: Any, content: Mapping[str, Any]) -> list[str]:
    """Add the name of the way to split text before merging."""
    parts = list(_parts(content["pre_tokenizer"]))
    patterns = "".join(str(part.get("pattern", {}).get("Regex", "")) for part in parts)
    known = next((name for mark, name in _SPLITS if mark in patterns), None)
    if known is None and not patterns:
        known = "smollm" if any(part["type"] == "Digits" for part in parts) else "gpt-2"
    writer.add_tokenizer_pre(known or "default")
    if known:
        return []
    return ["How the tokenizer splits text is not known to llama.cpp under a name; some tokens will differ there."]


def _parts(pre_tokenizer: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield a pre-tokenizer, or those of a sequence."""
    if pre_tokenizer is not None:
        yield from pre_tokenizer.get("pretokenizers", (pre_tokenizer,))
