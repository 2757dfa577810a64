"""From the name of a tensor in a safetensors file to its module and to the layer of the model that owns it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from codesign.model.layers import Experts, Layer, Model
from codesign.model.stored_tensor import StoredTensor

# What a quantizer appends to a module's name. Sources: compressed-tensors (compressors), GPTQModel (qlinear),
# bitsandbytes (Params4bit, Int8Params), ModelOpt (export/quant_utils.py), HQQ (core/quantize.py), torchao.
PARTS = (
    "weight", "bias", "qweight", "qzeros", "scales", "g_idx",
    "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale",
    "weight_scale_inv", "weight_scale_2", "input_scale", "input_zero_point", "input_global_scale", "pre_quant_scale",
    "activation_scale", "scale", "zero", "W_q", "SCB", "weight_format", "weight_qdata", "k_scale", "v_scale", "q_scale",
    "output_scale", "k_proj_scale", "v_proj_scale", "k_zero_point", "v_zero_point",
    "nbits", "group_size", "shape", "axis", "packing", "channel_wise", "optimize", "round_zero", "compute_dtype",
    "quant_scale", "quant_zero", "offload_meta", "view_as_float", "unpack_view_dtype",
    "encoded_state_dict", "stores_quant_config",
)  # fmt: skip
_DOTTED = ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
_QUANT_STATE = ".weight.quant_state."
# torchao, prototype/safetensors: `0._weight_qdata`, earlier `0.weight:qdata` and `0.bias:_data`.
_TORCHAO = re.compile(r"(?P<module>.*)\.(?:_(?P<new>weight)_|(?P<old>weight|bias):)(?P<attribute>\w+)")
_JOINED = ("_blocks", "_scales", "_bias")  # gpt-oss: ...experts.gate_up_proj_blocks
_PARTS = frozenset(PARTS)

_SMALL = re.compile(
    r"(?:^|\.)(\w*norm\w*|ln_\w+|sinks|wpe|embed_positions|rotary_emb|inv_freq|e_score_correction_bias)(?:\.|$)"
    r"|\.self_attn$"  # scales of the cache, as compressed-tensors 0.20 stores them
)
_IN_BLOCK = re.compile(r"(.*?)\.[0-9]+\.")
_ROOTS = ("language_model.", "model.language_model.", "model.", "transformer.")


@dataclass(frozen=True, slots=True)
class Module:
    """All tensors of one module by part, such as `weight` or `scales`."""

    name: str
    parts: Mapping[str, StoredTensor]

    @property
    def byte_count(self) -> int:
        """Return the bytes of all tensors of the module."""
        return sum(tensor.byte_count for tensor in self.parts.values())

    @property
    def has_weights(self) -> bool:
        """Return whether it is more than scales of a cache or a bias."""
        return bool(self.parts.keys() & {"weight", "qweight", "weight_packed", "W_q", "weight_qdata", "blocks", ""})


def split_name(name: str) -> tuple[str, str]:
    """Return the module and the part of a tensor; a tensor without a known part is its own module."""
    at = name.find(_QUANT_STATE)
    if at >= 0:
        return name[:at], name[at + 1 :]
    for part in _DOTTED:
        if name.endswith("." + part):
            return name[: -len(part) - 1], part
    torchao = _TORCHAO.fullmatch(name)
    if torchao:
        first, rest = torchao["new"] or torchao["old"], torchao["attribute"]
        return torchao["module"], first if rest == "_data" else f"{first}_{rest}"
    module, _, last = name.rpartition(".")
    if last in _PARTS:
        return module, last
    if ".experts." in name or name.endswith(".experts"):
        for suffix in _JOINED:
            if name.endswith(suffix):
                return name[: -len(suffix)], suffix[1:]
    return name, ""


def modules_of(tensors: Sequence[StoredTensor]) -> Iterator[Module]:
    """Yield the modules in the order of their first tensor."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        module, part = split_name(tensor.name)
        parts.setdefault(module, {})[part] = tensor
    for name, found in parts.items():
        yield Module(name, found)


Owner = tuple[Layer, ...] | Experts


class Owners:
    """Finds the layers of a model by the names of modules."""

    def __init__(self, model: Model) -> None:
        self._layers: dict[str, tuple[Layer, ...]] = {}
        for layer in (model.embedding, *model.layers):
            self._layers[layer.name] = (layer,)
            fused, _, part = layer.name.rpartition(".")
            if part in ("gate", "up") and layer.role == part:
                self._layers[fused] = (*self._layers.get(fused, ()), layer)
        self._experts = {block.experts.name: block.experts for block in model.blocks if block.experts}
        self._root = model.embedding.name.partition(".")[0] + "."
        starts = [_IN_BLOCK.match(block.layers[0].name) for block in model.blocks]
        self._blocks = {start[0] for start in starts if start}
        self._trunks = {start[1].rpartition(".")[0] + "." for start in starts if start}

    def find(self, module: str) -> Owner | None:
        """Return the layers stored in a module (two where gate and up are fused), or the experts it belongs to."""
        for name in self._spellings(module):
            if name in self._layers:
                return self._layers[name]
            head, mark, _ = name.partition(".experts")
            if mark and head + mark in self._experts:
                return self._experts[head + mark]
        return None

    def is_small(self, module: str) -> bool:
        """Return whether the name is that of a norm, of positions or of another small tensor of the model."""
        for name in self._spellings(module):
            block = _IN_BLOCK.match(name)
            if block and block[0] in self._blocks and _SMALL.search(name, block.end() - 1):
                return True
            rest = next((name[len(trunk) - 1 :] for trunk in self._trunks if name.startswith(trunk)), None)
            if block is None and rest is not None and _SMALL.match(rest):
                return True
        return False

    def _spellings(self, module: str) -> Iterator[str]:
        """Yield the name as it is, and with the roots that wrappers and bare models add or leave out."""
        yield module
        for root in _ROOTS:
            if module.startswith(root):
                rest = module[len(root) :]
                yield rest
                yield self._root + rest
        yield self._root + module
