"""From the name of a GGUF tensor to the layer of the model that owns it.

Source: ggml-org/llama.cpp, gguf-py/gguf/constants.py.
"""

import re
from collections.abc import Mapping

from codesign.model.layers import Experts, Layer, Model

_BLOCK = re.compile(r"blk\.([0-9]{1,6})\.([a-z0-9_]{1,64})\.(weight|bias)")
_ROLES: Mapping[str, tuple[str, ...]] = {
    "attn_q": ("q",),
    "attn_k": ("k",),
    "attn_v": ("v",),
    "attn_qkv": ("qkv",),
    "attn_output": ("o",),
    "attn_q_a": ("q_a",),
    "attn_q_b": ("q_b",),
    "attn_kv_a_mqa": ("kv_a",),
    "attn_kv_b": ("kv_b",),
    "attn_k_b": ("kv_b",),  # newer files store the two halves of kv_b apart
    "attn_v_b": ("kv_b",),
    "ffn_gate": ("gate",),
    "ffn_up": ("up",),
    "ffn_down": ("down",),
    "ffn_gate_inp": ("router",),
    "ffn_gate_inp_shexp": ("shared_router",),
    "ffn_gate_shexp": ("shared_gate",),
    "ffn_up_shexp": ("shared_up",),
    "ffn_down_shexp": ("shared_down",),
}
_FUSED_QKV = ("q", "k", "v")  # older conversions of Phi-2 have one tensor where Hugging Face has three
_EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)_exps")
_SMALL = re.compile(
    r"(?:blk\.([0-9]{1,6})\.)?(?:[a-z_0-9]*norm[a-z_0-9]*|attn_sinks|exp_probs_b|rope_freqs|rope_factors_(?:long|short)|position_embd)"
    r"(?:\.(?:weight|bias))?"
)


class GgufOwners:
    """Finds the layers of a model by the names of GGUF tensors."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._by_role: dict[tuple[int | None, str], Layer] = {
            (layer.block_index, layer.role): layer for block in model.blocks for layer in block.layers
        }
        self._experts = {block.index: block.experts for block in model.blocks if block.experts}
        self._outside = {"token_embd": model.embedding, "output": model.head}

    def find(self, name: str) -> tuple[Layer, ...] | Experts | None:
        """Return the layers that a tensor is the weight or the bias of, or the experts it belongs to."""
        module, _, part = name.rpartition(".")
        if module in self._outside and part in ("weight", "bias"):
            return (self._outside[module],)
        match = _BLOCK.fullmatch(name)
        if match is None:
            return None
        block, kind = int(match[1]), match[2]
        if _EXPERTS.fullmatch(kind):
            return self._experts.get(block)
        layers = self._of_roles(block, _ROLES.get(kind, ()))
        if kind == "attn_qkv" and not layers:
            layers = self._of_roles(block, _FUSED_QKV)
        if kind == "ffn_up" and layers and self._model.architecture == "phi3":
            layers = (self._by_role[block, "gate"], *layers)
        return layers or None

    def _of_roles(self, block: int, roles: tuple[str, ...]) -> tuple[Layer, ...]:
        return tuple(self._by_role[block, role] for role in roles if (block, role) in self._by_role)

    def is_small(self, name: str) -> bool:
        """Return whether the name is that of a norm, of positions or of another small tensor of the model."""
        match = _SMALL.fullmatch(name)
        return match is not None and (match[1] is None or int(match[1]) < len(self._model.blocks))
