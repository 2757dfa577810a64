"""A tiny Llama of random weights on disk, and plans for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from codesign.hardware.file import load_hardware
from codesign.model.layers import Model
from codesign.plan.file import Plan

BLOCK_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128, "head_dim": 16,
}  # fmt: skip


def save_tiny(folder: Path, **more: Any) -> Path:
    """Write the model into a folder and return it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**CONFIG, tie_word_embeddings=False, initializer_range=0.1, **more)
    transformers.utils.logging.disable_progress_bar()
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def plan_of(model: Model, scheme: str, except_groups: tuple[str, ...] = ()) -> Plan:
    """Return a plan with one scheme for all groups but some, which stay in 16 bits."""
    from codesign import api

    made = api.plan(load_hardware("epyc-9654"), model)
    groups = tuple(replace(group, scheme="BF16" if group.name in except_groups else scheme) for group in made.groups)
    return replace(made, groups=groups)
