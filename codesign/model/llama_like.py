"""Llama and the families that differ from it in a few traits: Mistral, Qwen, Gemma, Granite, gpt-oss."""

from collections.abc import Callable
from dataclasses import dataclass

from codesign.model.config import HIDDEN_MAX, INTERMEDIATE_MAX, Config
from codesign.model.experts import MlpMaker, dense_mlp, gpt_oss_mlp, mixtral_mlp, qwen_mlp
from codesign.model.layers import Block, Model
from codesign.model.parts import (
    HEAD_KEYS,
    Heads,
    Outside,
    Place,
    check_kv_heads,
    divided_head_dim,
    finish,
    fused_attention,
    read_size,
    split_attention,
)
from codesign.model.windows import WindowReader, all_but_every_nth, every_block, later_blocks, no_windows


@dataclass(frozen=True, slots=True)
class Traits:
    """How a family departs from Llama. Defaults are those of its Hugging Face configuration class."""

    bias_key: str | None = None
    bias_default: bool = False
    output_bias: bool = False  # whether the output projection has the bias of q, k and v
    tied_default: bool = False
    heads_default: int | None = None
    kv_heads_default: int | None = None
    kv_heads_optional: bool = False  # absent means as many as heads
    head_dim_default: int | None = None  # absent means hidden size / heads
    vocabulary_default: int | None = None
    context_default: int | None = None
    norm_count: int = 2
    qk_norm: bool = False
    sinks: bool = False
    windows: WindowReader = no_windows
    mlp: Callable[[Config, int], MlpMaker] = dense_mlp


LLAMA = Traits(bias_key="attention_bias", output_bias=True, kv_heads_optional=True, context_default=2048)
GEMMA = Traits(bias_key="attention_bias", output_bias=True, tied_default=True, head_dim_default=256)
TRAITS: dict[str, Traits] = {
    "llama": LLAMA,
    "granite": LLAMA,
    "mistral": Traits(windows=every_block(4096)),
    "mixtral": Traits(windows=every_block(), mlp=mixtral_mlp),
    "qwen2": Traits(bias_default=True, windows=later_blocks),
    "qwen2_moe": Traits(bias_key="qkv_bias", bias_default=True, windows=later_blocks, mlp=qwen_mlp),
    "qwen3": Traits(
        bias_key="attention_bias", output_bias=True, head_dim_default=128, qk_norm=True, windows=later_blocks
    ),
    "qwen3_moe": Traits(bias_key="attention_bias", output_bias=True, qk_norm=True, windows=later_blocks, mlp=qwen_mlp),
    "gemma": GEMMA,
    "gemma2": Traits(
        bias_key="attention_bias",
        output_bias=True,
        tied_default=True,
        head_dim_default=256,
        norm_count=4,
        windows=all_but_every_nth(2, 4096),
    ),
    "gemma3_text": Traits(
        bias_key="attention_bias",
        output_bias=True,
        tied_default=True,
        heads_default=8,
        kv_heads_default=4,
        head_dim_default=256,
        vocabulary_default=262208,
        context_default=131072,
        norm_count=4,
        qk_norm=True,
        windows=all_but_every_nth(6, 4096, ("sliding_window_pattern", "_sliding_window_pattern")),
    ),
    "gpt_oss": Traits(
        bias_key="attention_bias",
        bias_default=True,
        output_bias=True,
        head_dim_default=64,
        sinks=True,
        windows=all_but_every_nth(2, 128),
        mlp=gpt_oss_mlp,
    ),
}


def build_llama_like(config: Config) -> Model:
    """Return the model of a family listed in TRAITS."""
    traits = TRAITS[config.architecture]
    size = read_size(config, context_default=traits.context_default, vocabulary_default=traits.vocabulary_default)
    heads = _read_heads(config, size.hidden, traits)
    windows = traits.windows(config, size.block_count)
    make_mlp = traits.mlp(config, size.hidden)
    small = traits.norm_count * size.hidden
    small += 2 * heads.head_dim if traits.qk_norm else 0
    small += heads.heads if traits.sinks else 0

    def block(index: int) -> Block:
        place = Place("model.layers", index)
        mlp = make_mlp(place)
        layers = (*split_attention(place, size.hidden, heads), *mlp.layers)
        return Block(index, heads.attention(windows[index]), layers, mlp.experts, small + mlp.other_parameter_count)

    tied = config.boolean("tie_word_embeddings", traits.tied_default)
    outside = Outside("model.embed_tokens", "lm_head", tied, size.hidden)
    return finish(config, size, map(block, range(size.block_count)), outside)


def _read_heads(config: Config, hidden: int, traits: Traits) -> Heads:
    heads = config.integer(HEAD_KEYS, HIDDEN_MAX, traits.heads_default)
    kv_default = heads if traits.kv_heads_optional else traits.kv_heads_default
    kv_heads = config.integer("num_key_value_heads", HIDDEN_MAX, kv_default)
    check_kv_heads(config, "num_key_value_heads", kv_heads, heads)
    head_dim = config.optional_integer("head_dim", HIDDEN_MAX, traits.head_dim_default)
    bias = traits.bias_default
    if traits.bias_key is not None:
        bias = config.boolean(traits.bias_key, traits.bias_default)
    return Heads(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or divided_head_dim(config, hidden, heads),
        bias=bias,
        output_bias=bias and traits.output_bias,
    )


def build_gemma3(config: Config) -> Model:
    """Return the language model inside a multimodal Gemma 3; its vision tower is not counted."""
    return build_llama_like(config.section("text_config", "gemma3_text"))


def build_phi3(config: Config) -> Model:
    """Return Phi-3 and Phi-4, which store q/k/v and gate/up fused."""
    size = read_size(config)
    heads = _read_heads(config, size.hidden, Traits(kv_heads_optional=True))
    intermediate = config.integer("intermediate_size", INTERMEDIATE_MAX)
    windows = every_block()(config, size.block_count)

    def block(index: int) -> Block:
        place = Place("model.layers", index)
        attention = fused_attention(place, size.hidden, heads, ("self_attn.qkv_proj", "self_attn.o_proj"))
        layers = (
            *attention,
            place.layer("mlp.gate_up_proj.gate", "gate", (intermediate, size.hidden)),
            place.layer("mlp.gate_up_proj.up", "up", (intermediate, size.hidden)),
            place.layer("mlp.down_proj", "down", (size.hidden, intermediate)),
        )
        return Block(index, heads.attention(windows[index]), layers, None, 2 * size.hidden)

    tied = config.boolean("tie_word_embeddings", False)
    outside = Outside("model.embed_tokens", "lm_head", tied, size.hidden)
    return finish(config, size, map(block, range(size.block_count)), outside)
