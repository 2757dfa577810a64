"""Tiny configs of every architecture, in the keys of a Hugging Face config.json; the first word is the model_type."""

from typing import Any

COMMON = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
LATENT = {
    **COMMON, "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, **EXPERTS,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
HEADS = {"head_dim": 16}
TINY: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "llama with biases": {**COMMON, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {**COMMON, "head_dim": 24, "sliding_window": 16},
    "mixtral": {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": COMMON,
    "qwen2 with windows": {**COMMON, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen2_moe": {
        **COMMON, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48, "mlp_only_layers": [0],
    },
    "qwen3": {**COMMON, **HEADS},
    "qwen3_moe": {**COMMON, **HEADS, **EXPERTS, "num_experts": 4},
    "gemma": {**COMMON, **HEADS, "tie_word_embeddings": True},
    "gemma2": {**COMMON, **HEADS, "tie_word_embeddings": True},
    "gemma3_text": {**COMMON, **HEADS, "tie_word_embeddings": True},
    "granite": COMMON,
    "gpt_oss": {**COMMON, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**LATENT, "q_lora_rank": None},
    "deepseek_v3": {**LATENT, "q_lora_rank": 24},
    "phi": COMMON,
    "phi3": COMMON,
    "stablelm": {**COMMON, "use_qkv_bias": True},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64},
    "opt": {
        "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "gpt_neox": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
        "max_position_embeddings": 64,
    },
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128},
    "falcon in its new form": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "num_kv_heads": 2,
        "new_decoder_architecture": True,
    },
}  # fmt: skip
