"""From the metadata and the tensor table of a GGUF file to a model.

The keys are translated to those of a Hugging Face config.json, so that both ways share the builders of the families.
Source of the keys: ggml-org/ggml, docs/gguf.md, and ggml-org/llama.cpp, gguf-py/gguf/constants.py.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from codesign.errors import InputError
from codesign.model.architectures import build_model
from codesign.model.config import shown
from codesign.model.ggml_types import GGML_TYPES
from codesign.model.gguf_file import GgufFile
from codesign.model.layers import Model

EMBEDDING_TENSOR = "token_embd.weight"
HEAD_TENSOR = "output.weight"
_KV_HEADS = "attention.head_count_kv"


@dataclass(frozen=True, slots=True)
class _Keys:
    """Typed access to the keys `<architecture>.<name>` of a file, and to the names of its tensors."""

    file: GgufFile
    architecture: str
    shapes: Mapping[str, tuple[int, ...]]

    def number(self, name: str) -> int:
        """Return a whole number that must be there."""
        return self.file.metadata.value(f"{self.architecture}.{name}", int)

    def optional(self, name: str) -> int | None:
        """Return a whole number, None where the key is missing."""
        return self.number(name) if self.has(name) else None

    def has(self, name: str) -> bool:
        """Return whether the key is there."""
        return f"{self.architecture}.{name}" in self.file.metadata

    def per_block(self, name: str) -> int:
        """Return a number that may be given once or per block; blocks that differ cannot be planned."""
        key = f"{self.architecture}.{name}"
        found = self.file.metadata.values.get(key)
        if not isinstance(found, tuple):
            return self.number(name)
        if not found or len(set(found)) != 1 or type(found[0]) is not int:
            raise InputError(
                f"{self.file.metadata.where}: the key {shown(key)} differs between blocks; only models with equal "
                "blocks can be read from a GGUF file. Give the config.json of the model instead."
            )
        return found[0]


def gguf_model(file: GgufFile) -> Model:
    """Return the shapes of a GGUF checkpoint; InputError names the key that is missing or not understood."""
    architecture = file.metadata.value("general.architecture", str)
    where = file.metadata.where
    if architecture not in _CONFIGS:
        near = difflib.get_close_matches(architecture[:80], _CONFIGS, n=3, cutoff=0.5)
        nearest = f" Nearest are {', '.join(near)}." if near else ""
        raise InputError(
            f"{where}: general.architecture: {shown(architecture)} is not an architecture that is known.{nearest} "
            f"All known are {', '.join(_CONFIGS)}."
        )
    keys = _Keys(file, architecture, {tensor.name: tensor.shape for tensor in file.tensors})
    values = _common(keys) | _CONFIGS[architecture](keys)
    model = build_model(values, where)
    name = file.metadata.values.get("general.name")
    return replace(model, name=shown(name)[1:-1] if isinstance(name, str) and name else model.name)


def refuse_unknown_types(file: GgufFile) -> None:
    """Raise if a tensor has a type that is not known here: nothing can be predicted for it."""
    known = {ggml_type.name for ggml_type in GGML_TYPES.values()}
    for tensor in file.tensors:
        if tensor.dtype not in known:
            raise InputError(
                f"{file.metadata.where}: the tensor {shown(tensor.name)} has the ggml {tensor.dtype}, which is not "
                "known here; `codesign model show` lists the file."
            )


def _common(keys: _Keys) -> dict[str, Any]:
    heads = keys.per_block("attention.head_count")
    embedding = keys.shapes.get(EMBEDDING_TENSOR, ())
    if len(embedding) != 2:
        raise InputError(f"{keys.file.metadata.where}: the tensor {EMBEDDING_TENSOR} is missing or no matrix.")
    values: dict[str, Any] = {
        "hidden_size": keys.number("embedding_length"),
        "num_hidden_layers": keys.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.per_block(_KV_HEADS) if keys.has(_KV_HEADS) else heads,
        "max_position_embeddings": keys.number("context_length"),
        "vocab_size": embedding[0],
        "head_dim": keys.optional("attention.key_length"),
        "sliding_window": keys.optional("attention.sliding_window"),
        "tie_word_embeddings": HEAD_TENSOR not in keys.shapes,
        "attention_bias": "blk.0.attn_q.bias" in keys.shapes or "blk.0.attn_qkv.bias" in keys.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in keys.shapes,
    }  # fmt: skip
    if keys.has("feed_forward_length"):
        values["intermediate_size"] = keys.per_block("feed_forward_length")
    return values


def _as(model_type: str, **more: Any) -> Callable[[_Keys], dict[str, Any]]:
    """Return the translation of a family that needs nothing beyond the common keys."""
    return lambda keys: {"model_type": model_type, **more}


def _llama(keys: _Keys) -> dict[str, Any]:
    """Return Llama, Mistral or Mixtral: GGUF calls all of them llama."""
    if not keys.optional("expert_count"):
        return {"model_type": "llama"}
    return {"model_type": "mixtral", **_experts(keys, "num_local_experts")}


def _experts(keys: _Keys, count_key: str) -> dict[str, Any]:
    return {count_key: keys.number("expert_count"), "num_experts_per_tok": keys.number("expert_used_count")}


def _qwen_moe(model_type: str) -> Callable[[_Keys], dict[str, Any]]:
    def translate(keys: _Keys) -> dict[str, Any]:
        return {
            "model_type": model_type,
            "qkv_bias": "blk.0.attn_q.bias" in keys.shapes,
            "intermediate_size": keys.optional("feed_forward_length") or keys.number("expert_feed_forward_length"),
            "moe_intermediate_size": keys.number("expert_feed_forward_length"),
            "shared_expert_intermediate_size": keys.optional("expert_shared_feed_forward_length"),
            **_experts(keys, "num_experts"),
        }

    return translate


def _gpt_oss(keys: _Keys) -> dict[str, Any]:
    width = keys.optional("expert_feed_forward_length") or keys.per_block("feed_forward_length")
    return {"model_type": "gpt_oss", "intermediate_size": width, **_experts(keys, "num_local_experts")}


def _deepseek(keys: _Keys) -> dict[str, Any]:
    """Return DeepSeek-V2 or V3; only V3 corrects its router. Lengths of the heads are those before compression."""
    rope = keys.number("rope.dimension_count")
    key_length = keys.optional("attention.key_length_mla") or keys.number("attention.key_length")
    corrected = any("exp_probs_b" in name for name in keys.shapes)
    values: dict[str, Any] = {
        "model_type": "deepseek_v3" if corrected else "deepseek_v2",
        "q_lora_rank": keys.optional("attention.q_lora_rank"),
        "kv_lora_rank": keys.number("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key_length - rope,
        "v_head_dim": keys.optional("attention.value_length_mla") or keys.number("attention.value_length"),
        "first_k_dense_replace": keys.optional("leading_dense_block_count") or 0,
    }
    if keys.optional("expert_count"):
        values |= {
            "n_routed_experts": keys.number("expert_count"),
            "num_experts_per_tok": keys.number("expert_used_count"),
            "moe_intermediate_size": keys.number("expert_feed_forward_length"),
            "n_shared_experts": keys.optional("expert_shared_count") or 0,
        }
    return values


def _gpt2(keys: _Keys) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_inner": keys.per_block("feed_forward_length")}


def _falcon(keys: _Keys) -> dict[str, Any]:
    """Return Falcon: the new decoder has two norms in front of a block."""
    new = "blk.0.attn_norm_2.weight" in keys.shapes
    kv_heads = keys.per_block("attention.head_count_kv")
    return {
        "model_type": "falcon",
        "new_decoder_architecture": new,
        "multi_query": kv_heads == 1,
        "num_kv_heads": kv_heads,
        "ffn_hidden_size": keys.per_block("feed_forward_length"),
    }


def _stablelm(keys: _Keys) -> dict[str, Any]:
    return {
        "model_type": "stablelm",
        "use_qkv_bias": "blk.0.attn_q.bias" in keys.shapes,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in keys.shapes,
    }


_CONFIGS: dict[str, Callable[[_Keys], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _as("qwen2"),
    "qwen2moe": _qwen_moe("qwen2_moe"),
    "qwen3": _as("qwen3"),
    "qwen3moe": _qwen_moe("qwen3_moe"),
    "gemma": _as("gemma"),
    "gemma2": _as("gemma2"),
    "gemma3": _as("gemma3_text"),
    "granite": _as("granite"),
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek,
    "phi2": _as("phi"),
    "phi3": _as("phi3"),
    "gpt2": _gpt2,
    "gptneox": _as("gpt_neox"),
    "falcon": _falcon,
    "bloom": _as("bloom"),
    "stablelm": _stablelm,
}
