"""The keys of a GGUF file that describe the model. Source: ggml-org/ggml, docs/gguf.md."""

from typing import Any

from codesign.errors import InputError

# By model_type of transformers: ggml's name of the architecture.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
PERMUTED = ("llama",)
_QUANTIZATION_VERSION = 2


def write_keys(writer: Any, config: Any, file_type: int) -> None:
    """Add what llama.cpp needs to know of the model."""
    heads, head_dim = config.num_attention_heads, head_dim_of(config)
    writer.add_type("model")
    writer.add_file_type(file_type)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    if head_dim * heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if _rope(config).get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(_rope(config)["factor"]))


def head_dim_of(config: Any) -> int:
    """Return the size of a head."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def rope_factors(config: Any) -> Any:
    """Return what ggml divides the frequencies of Llama 3 by, float32 [head_dim / 2], None where they are plain.

    Source: llama.cpp, convert_hf_to_gguf.py (rope_freqs); the frequencies are those of transformers.
    """
    kind = _rope(config).get("rope_type", "default")
    if kind in ("default", "linear"):
        return None
    if kind != "llama3":
        raise InputError(f"Positions scaled by {kind} are not written to GGUF files here; use another format.")
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    head_dim = head_dim_of(config)
    plain = 1.0 / _rope(config)["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return (plain / scaled).float().numpy()


def _rope(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = config.rope_parameters
    return found
