"""Write tiny checkpoints in the layout of every quantizer: all headers as in the wild, all data zero."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codesign.model.ggml_types import GGML_TYPES
from codesign.model.safetensors_file import BITS_BY_DTYPE
from tests.crafted_checkpoints import TEXT, gguf, key, safetensors, tensor, text, uint32

Tensors = dict[str, tuple[str, tuple[int, ...]]]

HIDDEN, INTERMEDIATE, BLOCKS, HEADS, KV_HEADS, VOCABULARY = 256, 512, 2, 4, 2, 384
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
}  # fmt: skip
KV_WIDTH = HIDDEN * KV_HEADS // HEADS
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_WIDTH, HIDDEN),
    "self_attn.v_proj": (KV_WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
LAYERS = {f"model.layers.{i}.{name}": shape for i in range(BLOCKS) for name, shape in SHAPES.items()}
Maker = Callable[[int, int], Mapping[str, tuple[str, tuple[int, ...]]]]


def bf16(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {"weight": ("BF16", (n, k))}


def llama(maker: Maker, **others: Maker) -> Tensors:
    """Return all tensors of the tiny Llama; `others` are for modules whose name contains the key."""
    tensors: Tensors = {
        "model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN)),
        "lm_head.weight": ("BF16", (VOCABULARY, HIDDEN)),
        "model.norm.weight": ("BF16", (HIDDEN,)),
    }
    for block in range(BLOCKS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{block}.{norm}.weight"] = ("BF16", (HIDDEN,))
    for module, shape in LAYERS.items():
        chosen = next((other for key, other in others.items() if key in module), maker)
        for part, stored in chosen(*shape).items():
            tensors[f"{module}.{part}"] = stored
    return tensors


def tensor_file(tensors: Tensors) -> bytes:
    """Return a safetensors file of zeros."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        values = 1
        for size in shape:
            values *= size
        start, end = end, end + values * BITS_BY_DTYPE[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return safetensors(header, bytes(end))


def write_folder(
    folder: Path, tensors: Tensors, quantization: Any = None, config: Mapping[str, Any] | None = None
) -> Path:
    """Write config.json and one file of weights."""
    folder.mkdir(exist_ok=True)
    values = {**LLAMA, **(config or {})}
    if quantization is not None:
        values["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(tensor_file(tensors))
    return folder


def gptq(bits: int = 4, group: int = 128) -> Maker:
    def make(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        groups = k // group if group > 0 else 1
        return {
            "qweight": ("I32", (k * bits // 32, n)),
            "qzeros": ("I32", (groups, n * bits // 32)),
            "scales": ("F16", (groups, n)),
            "g_idx": ("I32", (k,)),
        }

    return make


def awq(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {
        "qweight": ("I32", (k, n // 8)),
        "qzeros": ("I32", (k // 128, n // 8)),
        "scales": ("F16", (k // 128, n)),
    }


def packed(bits: int = 4, group: int = 128, zeros: bool = False) -> Maker:
    """Return pack-quantized integers of compressed-tensors."""

    def make(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        groups = k // group if group > 0 else 1
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            "weight_packed": ("I32", (n, -(-k * bits // 32))),
            "weight_scale": ("BF16", (n, groups)),
            "weight_shape": ("I64", (2,)),
        }
        if zeros:
            parts["weight_zero_point"] = ("I32", (-(-n * bits // 32), groups))
        return parts

    return make


def nvfp4(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {
        "weight_packed": ("U8", (n, k // 2)),
        "weight_scale": ("F8_E4M3", (n, k // 16)),
        "weight_global_scale": ("F32", (1,)),
        "input_global_scale": ("F32", (1,)),
    }


def modelopt_nvfp4(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {
        "weight": ("U8", (n, k // 2)),
        "weight_scale": ("F8_E4M3", (n, k // 16)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    }


def modelopt_int4(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {"weight": ("U8", (n // 2, k)), "weight_scale": ("F32", (n, k // 128)), "pre_quant_scale": ("BF16", (k,))}


def fp8(scale: Callable[[int, int], tuple[int, ...]], name: str = "weight_scale", inputs: bool = False) -> Maker:
    def make(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        parts: dict[str, tuple[str, tuple[int, ...]]] = {"weight": ("F8_E4M3", (n, k)), name: ("F32", scale(n, k))}
        return {**parts, "input_scale": ("F32", ())} if inputs else parts

    return make


def int8(scale: Callable[[int, int], tuple[int, ...]] = lambda n, k: (n, 1)) -> Maker:
    return lambda n, k: {"weight": ("I8", (n, k)), "weight_scale": ("BF16", scale(n, k))}


def bitsandbytes(kind: str = "nf4", double: bool = True) -> Maker:
    def make(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            "weight": ("U8", (n * k // 2, 1)),
            "weight.absmax": ("U8" if double else "F32", (n * k // 64,)),
            "weight.quant_map": ("F32", (16,)),
            f"weight.quant_state.bitsandbytes__{kind}": ("U8", (80,)),
        }
        if double:
            parts["weight.nested_absmax"] = ("F32", (-(-n * k // 64 // 256),))
            parts["weight.nested_quant_map"] = ("F32", (256,))
        return parts

    return make


def llm_int8(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {"weight": ("I8", (n, k)), "SCB": ("F32", (n,)), "weight_format": ("U8", ())}


def hqq(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {
        "W_q": ("U8", (n * k // 2 // 64, 64)),
        "scale": ("F16", (n * k // 64, 1)),
        "zero": ("F16", (n * k // 64, 1)),
    }


def torchao(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {"_weight_qdata": ("I8", (n, k)), "_weight_scale": ("BF16", (n, 1))}


def torchao_int4(tiles: bool = False) -> Maker:
    """Return int4 of torchao: plain, or in the tiles of tinygemm with scales and zero points as pairs."""

    def make(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        if tiles:
            packed = ("I32", (n // 8, k // 128, 32, 4))
            return {"_weight_qdata": packed, "_weight_scale_and_zero": ("BF16", (k // 128, n, 2))}
        scale = ("BF16", (k // 128, n))
        return {"_weight_qdata": ("I8", (n, k // 2)), "_weight_scale": scale, "_weight_zero_point": scale}

    return make


def old_torchao(n: int, k: int) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {"weight:qdata": ("I8", (n, k)), "weight:scale": ("BF16", (n, 1))}


NUMBERS = {ggml_type.name: number for number, ggml_type in GGML_TYPES.items()}


def write_gguf(
    path: Path, architecture: str, keys: dict[str, int], tensors: list[tuple[str, tuple[int, ...], str]]
) -> Path:
    """Write a GGUF file of zeros; shapes have the rows first. An unknown type, such as "type 77", takes 64 bytes."""
    rows, offset = [], 0
    for name, shape, dtype in tensors:
        number = NUMBERS.get(dtype) or int(dtype.removeprefix("type ")) if dtype != "F32" else 0
        rows.append(tensor(name, tuple(reversed(shape)), number, offset))
        values = 1
        for size in shape:
            values *= size
        ggml_type = GGML_TYPES.get(number)
        size = values // ggml_type.block_values * ggml_type.block_bytes if ggml_type else 64
        offset += -(-size // 32) * 32
    named = [uint32(f"{architecture}.{name}", value) for name, value in keys.items()]
    path.write_bytes(gguf([key("general.architecture", TEXT, text(architecture)), *named], rows, bytes(offset)))
    return path


GGUF_KEYS = {
    "block_count": 1, "context_length": 512, "embedding_length": 256, "feed_forward_length": 512,
    "attention.head_count": 4, "attention.head_count_kv": 2,
}  # fmt: skip


def gguf_attention(block: int = 0, v_type: str = "Q4_K") -> list[tuple[str, tuple[int, ...], str]]:
    start = f"blk.{block}"
    return [
        (f"{start}.attn_norm.weight", (256,), "F32"),
        (f"{start}.attn_q.weight", (256, 256), "Q4_K"),
        (f"{start}.attn_k.weight", (128, 256), "Q4_K"),
        (f"{start}.attn_v.weight", (128, 256), v_type),
        (f"{start}.attn_output.weight", (256, 256), "Q4_K"),
        (f"{start}.ffn_norm.weight", (256,), "F32"),
    ]


def gguf_llama(v_type: str = "Q6_K", up_type: str = "Q4_K") -> list[tuple[str, tuple[int, ...], str]]:
    return [
        ("token_embd.weight", (64, 256), "Q6_K"),
        *gguf_attention(0, v_type),
        ("blk.0.ffn_gate.weight", (512, 256), "Q4_K"),
        ("blk.0.ffn_up.weight", (512, 256), up_type),
        ("blk.0.ffn_down.weight", (256, 512), "Q6_K"),
        ("output_norm.weight", (256,), "F32"),
        ("rope_freqs.weight", (32,), "F32"),
    ]
